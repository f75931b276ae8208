"""A whole run for each of several seeds, and what was measured over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.intervals import mean_interval
from fusion_jax.markdown import markdown_table
from fusion_jax.runs.provenance import Ran, write_report
from fusion_jax.store.run_folder import RESULTS, RunFolder

Measures = dict[str, dict[str, float]]
"""{model: {measure: value}}."""


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


def _report_seeds(
    run: RunFolder, title: str, ran: Ran | None, count: int, seen: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    table = []
    for name, measures in seen.items():
        line = {"model": name}
        for measure, values in measures.items():
            mean, half = mean_interval(values)
            line |= {measure: f"{mean:.4f} ± {half:.4f}", f"{measure}, each": " ".join(f"{v:.3f}" for v in values)}
        table.append(line)
    result = ""
    if table:
        name, measures = list(seen.items())[-1]
        told = [f"{measure} {table[-1][measure]}" for measure in list(measures)[:1]]
        first = next(iter(seen))
        told += [f"{first}'s is {table[0][m]}" for m in list(seen[first])[:1] if first != name]
        result = f"Over {count} seeds {name} has {'; '.join(told)}."
    parts = ["Mean and 95 % Student interval.", markdown_table(table)]
    run.on_first(lambda: write_report(run, f"{title} over {count} seeds", result, ran, parts))
    run.log(markdown_table(table))
