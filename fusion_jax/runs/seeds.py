"""A whole run for each of several seeds, and what was measured over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.intervals import mean_interval
from fusion_jax.json_files import read_json
from fusion_jax.markdown import markdown_table
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.provenance import Ran, write_report
from fusion_jax.store.run_folder import RESULTS, RunFolder

Measures = dict[str, dict[str, float]]
"""{model: {measure: value}}."""
Values = Mapping[str, Mapping[str, Sequence[float]]]
"""{model: {measure: one value a seed}}."""
MOST_TELLING = "mean reward"
ON_TASKS = ", on tasks"  # behind the name of a model that was evaluated on other tasks than the page's own


def over_seeds(
    run: RunFolder,
    title: str,
    ran: Ran | None,
    first: int,
    count: int,
    one: Callable[[int, RunFolder], Measures],
) -> None:
    """A whole run with one seed or several: results.json holds what was measured; of several, report.md has the mean
    and the 95 % Student interval of every model's every measure.

    Args:
      ran: what was run, for the report.
      one: (seed, its folder) -> {model: {measure: value}}; a single seed has the run's own folder and report.
    """
    if count < 1:
        raise InputError(f"{count} is out of range", field="--seeds", cure="Give 1 or more")
    seen: dict[str, dict[str, list[float]]] = {}
    for seed in range(first, first + count):
        if count > 1:
            run.log(f"seed {seed}")
        for name, measured in one(seed, run if count == 1 else run.sub(f"seed-{seed}")).items():
            for measure, value in measured.items():
                seen.setdefault(name, {}).setdefault(measure, []).append(value)
        run.manifests.leave(f"seed-{seed}")
    run.on_first(lambda: write_json(run.file(RESULTS), seen, sort=False))
    if count > 1:
        _report_seeds(run, title, ran, count, seen)


def add_results(run: RunFolder, measured: Measures) -> None:
    """Measures of a single run beside those that its results.json has already."""

    def add() -> None:
        file = run.file(RESULTS)
        values = {name: {measure: [value] for measure, value in one.items()} for name, one in measured.items()}
        write_json(file, (read_json(file) if file.exists() else {}) | values, sort=False)

    if measured:
        run.on_first(add)


def _report_seeds(run: RunFolder, title: str, ran: Ran | None, count: int, seen: Values) -> None:
    table = []
    for name, measures in seen.items():
        line = {"model": name}
        for measure, values in measures.items():
            mean, half = mean_interval(values)
            line |= {measure: f"{mean:.4f} ± {half:.4f}", f"{measure}, each": " ".join(f"{v:.3f}" for v in values)}
        table.append(line)
    learnt_from = {model_name(source) for source in getattr(ran.settings if ran else None, "sources", ())}
    tasks = [name for name in seen if name.endswith(ON_TASKS)]
    own = [name for name in seen if name not in (*learnt_from, *tasks)]
    parts = ["Mean and 95 % Student interval.", markdown_table(table)]
    gains = [gain for some in (own, tasks) for gain in seed_differences(seen, some) if len(gain) > 1]
    if gains:
        parts += ["Differences on the same seeds, mean and 95 % Student interval.", markdown_table(gains)]
    result = _sentence(seen, own, count)
    run.on_first(lambda: write_report(run, f"{title} over {count} seeds", result, ran, parts))
    run.log("\n\n".join(parts[1::2]))


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Each model with the one before it, then the last with every other, from the nearest to the first."""
    return list(dict.fromkeys([*zip(models[1:], models), *((models[-1], other) for other in models[-3::-1])]))


def seed_differences(seen: Values, models: Sequence[str]) -> list[dict[str, str]]:
    """A line for each of `pairs_of`: the mean difference and its interval of every measure that both have."""
    lines = []
    for one, other in pairs_of(models):
        line = {"comparison": f"{one} - {other}"}
        for measure in [m for m in seen[one] if len(seen[one][m]) == len(seen[other].get(m, ()))]:
            mean, half = mean_interval([a - b for a, b in zip(seen[one][measure], seen[other][measure], strict=True)])
            line[measure] = f"{mean:+.4f} ± {half:.4f}"
        lines.append(line)
    return lines


def _sentence(seen: Values, models: Sequence[str], count: int) -> str:
    """The last model by its most telling measure, against the one before it and the first."""
    if not models:
        return ""
    last = models[-1]
    measure = MOST_TELLING if MOST_TELLING in seen[last] else next(iter(seen[last]), "")
    if not measure:
        return ""
    mean, half = mean_interval(seen[last][measure])
    told = [f"Over {count} seeds {last} has {measure} {mean:.4f} ± {half:.4f}"]
    lines = {line["comparison"]: line for line in seed_differences(seen, models)}
    for other in dict.fromkeys([*models[-2:-1], models[0]]):
        if measure in lines.get(f"{last} - {other}", {}):
            told.append(f"{lines[f'{last} - {other}'][measure]} against {other}")
    return "; ".join(told) + "."
