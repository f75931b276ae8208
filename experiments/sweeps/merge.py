"""Merge sweep: method x number of models x the method's main parameter, on the targets of a finished FuseChat run.

    python experiments/fusechat.py --seeds 3 --merges sce --out runs/chat
    python experiments/sweeps/merge.py --runs runs/chat/seed-42 runs/chat/seed-43 runs/chat/seed-44 --out runs/sweep

Each run gives its pivot, its pairwise targets and its seed (one interval over the runs). Models are added in the order
of the targets' names. Result: accuracy on the zoo's test problems, or on --test-prompts, as report.md with one line a
merge and a figure of each main parameter. Hardware and time: 2 CPU cores, about 3 s a merge; killed, the same command
with --resume goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fusion_jax.data.asked import parse_prompts
from fusion_jax.data.loaders import load_records
from fusion_jax.errors import InputError
from fusion_jax.figures import hue, new_figure, tidy
from fusion_jax.intervals import mean_interval
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.merge import merge
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.recipes.places import nearest
from fusion_jax.merge.recipes.published import published_recipe
from fusion_jax.options import File, Files, Folder, OneOf
from fusion_jax.runs.judging import EvalSet, judged
from fusion_jax.runs.opening import check_finished, open_run
from fusion_jax.runs.provenance import Ran, write_report
from fusion_jax.sampling.generate import load_to_sample
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, mixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Merge specification section 8: a method's main parameter and its values; the others as in the published recipes.
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    "linear": ("", ()), "varm": ("", ()), "model_stock": ("", ()), "karcher": ("", ()),
    "task_arithmetic": ("weight", (0.1, 0.3, 0.5, 1.0)),
    "ties": ("density", (0.1, 0.3, 0.5, 0.6, 0.9)), "dare_linear": ("density", (0.1, 0.3, 0.5, 0.6, 0.9)),
    "della": ("density", (0.3, 0.5, 0.6)), "breadcrumbs": ("density", (0.3, 0.5, 0.6, 0.9)),
    "sce": ("select_topk", (0.05, 0.1, 0.2, 0.5, 1.0)),
}  # fmt: skip


SweptMethod = Annotated[str, OneOf(tuple(GRID))]


@dataclass(frozen=True)
class Settings:
    """Finished FuseChat runs and which merges of their targets are tried."""

    runs: Files = ()
    """Finished FuseChat runs of one seed each."""
    out: Folder = "runs/merge-sweep"
    """Folder of the sweep, which is made."""
    resume: bool = False
    """Continue the sweep that --out holds, if there is one."""
    methods: tuple[SweptMethod, ...] = tuple(GRID)
    """Merge methods that are tried."""
    least_models: int = 2
    """Fewest targets that are merged; 2 merges pairs first."""
    test_prompts: File = ""
    """Prompts with "answer", on which every merge is judged; without, the zoo's problems."""
    test_per_skill: int = 60
    """The zoo's problems of each skill to be judged on."""
    eval_new_tokens: int = 28
    """Longest test answer, in tokens."""

    def __post_init__(self) -> None:
        bounded(self, "least_models", "test_per_skill", "eval_new_tokens", least=1)


def grid(s: Settings, count: int) -> Iterator[tuple[str, int, str, dict[str, float]]]:
    """(method, number of models, its label, values that are set) of every merge of one run."""
    for method in s.methods:
        name, values = GRID[method]
        for models in range(max(s.least_models, METHODS[method].least_models), count + 1):
            for value in values or (None,):
                label = f"{method} of {models}" + ("" if value is None else f" {name}={value:g}")
                yield method, models, label, {} if value is None else {name: value}


def main(s: Settings) -> None:
    for method in s.methods:
        if method not in GRID:
            raise InputError(f"'{method}' is not in the grid", field="methods", cure=nearest(method, GRID))
    if not s.runs:
        raise InputError("is missing", field="--runs", cure="Give one or more finished runs of experiments/fusechat.py")
    runs = [opened(Path(path)) for path in s.runs]
    with open_run(s.out, s, resume=s.resume) as sweep:
        lines: dict[str, dict[str, Any]] = {}
        for number, run in enumerate(runs):
            for label, line in measured(s, sweep.sub(f"run-{number}"), *run).items():
                lines.setdefault(label, {**line, "accuracies": []})["accuracies"].append(line["accuracy"])
        report(s, sweep, list(lines.values()))
        sweep.finish()


def opened(path: Path) -> tuple[int, Path, list[Path]]:
    """The seed, the pivot and the pairwise targets of a finished run; one of several seeds is a folder seed-N of it."""
    of_seed = path.name.startswith("seed-")
    run = path.parent if of_seed else path
    targets = sorted((path / "targets").glob("with-*"))
    if not targets or not (run / "finished.json").exists():
        cure = "Finish experiments/fusechat.py with the arm `pairwise`; of a run of several seeds give seed-N"
        raise InputError("is no finished FuseChat run with pairwise targets", file=path, field="--runs", cure=cure)
    check_finished(run, [target.relative_to(run).as_posix() for target in targets])
    config = read_json(run / "config.json", cure=RESTORE)
    seed = int(path.name.removeprefix("seed-")) if of_seed else int(config["seed"])
    return seed, model_path(config["pivot"]), targets


def measured(s: Settings, place: RunFolder, seed: int, pivot: Path, targets: list[Path]) -> dict[str, dict[str, Any]]:
    """Every merge of one run's targets: label -> method, models, value, accuracy."""
    tests = EvalSet(prompts(s, seed), s.eval_new_tokens)
    out: dict[str, dict[str, Any]] = {}

    def judge(label: str, folder: Path, *made_from: str, **line: Any) -> None:
        model = load_to_sample(folder)
        rows = judged(place, label.replace(" ", "-"), model, tests, made_from=made_from)
        out[label] = {"merge": label, **line, "accuracy": next(r["accuracy"] for r in rows if r["skill"] == "all")}

    for target in targets:
        judge(target.name, target, method="target", models=1, value=None)
    for method, count, label, values in grid(s, len(targets)):
        name = f"merged/{label.replace(' ', '-')}"
        recipe = published_recipe(method, targets[:count], pivot, values, seed=seed)
        place.made_once(name, lambda folder, r=recipe: _merged(r, folder), made_from=[])  # type: ignore[misc]
        judge(label, place.file(name), name, method=method, models=count, value=next(iter(values.values()), None))
    return out


def _merged(recipe: dict[str, Any], folder: Path) -> None:
    merge(recipe, folder)


def prompts(s: Settings, seed: int) -> list[Record]:
    if s.test_prompts:
        return parse_prompts(load_records(s.test_prompts), file=s.test_prompts)
    return mixture(dict.fromkeys(SKILLS, s.test_per_skill), split="test", seed=seed)


def report(s: Settings, sweep: RunFolder, lines: list[dict[str, Any]]) -> None:
    """One table, one figure."""
    table = []
    for line in lines:
        mean, half = mean_interval(line["accuracies"])
        line |= {"mean": mean, "half": half}
        shown = f"{mean:.4f} ± {half:.4f}" if len(line["accuracies"]) > 1 else f"{mean:.4f}"
        table.append({"merge": line["merge"], "models": line["models"], "accuracy": shown})
    text = markdown_table(table)
    runs = len(lines[0]["accuracies"])
    best, target = (max((r for r in lines if (r["method"] == "target") == own), key=lambda r: r["mean"], default=None)
                    for own in (False, True))  # fmt: skip
    result = "" if best is None else f"The best merge, {best['merge']}, answers {100 * best['mean']:.1f} %"
    result += "" if target is None or not result else f"; the best target {100 * target['mean']:.1f} %"
    parts = [
        "One run." if runs == 1 else f"Mean over {runs} runs, 95 % Student interval.", text,
        save_figure(figure(lines), sweep.file("sweep.png")),
    ]  # fmt: skip
    write_report(sweep, "Merge sweep", f"{result}." if result else "", Ran(__file__, s, {"tiny": Settings()}), parts)
    sweep.log(text)
    sweep.log(f"report: {sweep.file('report.md')}")


def figure(lines: list[dict[str, Any]]) -> Figure:
    """A panel a method with a main parameter, a line a number of models; the best target as a dashed line."""
    methods = [
        m
        for m in dict.fromkeys(r["method"] for r in lines)
        if any(r["value"] is not None for r in lines if r["method"] == m)
    ]
    best = max(r["mean"] for r in lines if r["method"] == "target")
    out, every = new_figure(1, max(len(methods), 1), size=(4.2 * max(len(methods), 1), 3.4))
    for axes, method in zip(every, methods):
        mine = [r for r in lines if r["method"] == method]
        counts = sorted({r["models"] for r in mine})
        for count, colour in zip(counts, hue(len(counts)), strict=True):
            some = [r for r in mine if r["models"] == count]
            axes.errorbar(
                [r["value"] for r in some], [r["mean"] for r in some], yerr=[r["half"] for r in some], marker="o",
                markersize=4, linewidth=1.2, capsize=3, color=colour, label=f"{count} models",
            )  # fmt: skip
        axes.axhline(best, color="grey", linestyle="--", linewidth=0.8, label="best target")
        tidy(axes, method, x=GRID[method][0], y="accuracy")
    return out


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
