"""What a report says before its tables: one sentence of result, and what was run, so that it can be run again."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_jax.command_line import as_arguments, options_given
from fusion_jax.markdown import markdown_table
from fusion_jax.options import Option
from fusion_jax.paths import write_text
from fusion_jax.runs.opening import ELSEWHERE
from fusion_jax.store.run_folder import REPORT, RunFolder
from fusion_jax.store.times import Spent, times
from fusion_jax.versions import ROOT, commit, devices, versions


@dataclass(frozen=True)
class Ran:
    """What was run: the script's path, its settings and its presets."""

    script: str
    settings: Any
    presets: Mapping[str, Any]


def write_report(run: RunFolder, title: str, result: str, ran: Ran | None, parts: Sequence[str]) -> None:
    """report.md: the title, one sentence of result, what was run, then tables and figures.

    Args:
      ran: None where a program has no settings of its own.
    """
    told = [] if ran is None else [what_was_run(run, ran)]
    text = "\n\n".join([f"# {title}", f"**{result}**" if result else "", *told, *parts])
    write_text(run.file(REPORT), text.replace("\n\n\n\n", "\n\n") + "\n")


def what_was_run(run: RunFolder, ran: Ran) -> str:
    """A command that runs the same again, what differs from its preset, seed, versions, devices, date and time."""
    preset, changed = nearest_preset(ran)
    out = [o for o, _ in options_given(ran.settings, preset[1]) if o.path == ("out",)]
    named = ["--preset", preset[0]] if len(ran.presets) > 1 else []
    script = Path(ran.script).resolve()
    path = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    ours = sorted([o for o, _ in changed] + out, key=lambda option: not option.positional)
    arguments = [word for option in ours for word in as_arguments(option)]
    command = shlex.join(["python", str(path), *named, *arguments])
    facts = [{"what": what, "value": value} for what, value in _facts(ran, preset[0]).items() if value]
    parts = ["## What was run", f"```\n{command}\n```", markdown_table(facts)]
    if changed:
        rows = [{"setting": o.name, "value": _shown(o.default), "in the preset": _shown(v)} for o, v in changed]
        parts += ["Settings that differ from the preset:", markdown_table(rows)]
    return "\n\n".join([*parts, *where_the_time_went(run)])


def where_the_time_went(run: RunFolder) -> list[str]:
    """What each stage took, over all starts of the run, and what kinds of work that was."""
    run.settle()
    run.appending.flush()
    spent, together = times(run.path), Spent()
    for one in spent.values():
        together.add(one.seconds, one.phases)
    lines = [
        {"stage": stage, "seconds": f"{one.seconds:.0f}", "of which": one.in_words()}
        for stage, one in [*spent.items(), ("together", together)]
    ]
    return ["### Where the time went", "Over all starts of the run.", markdown_table(lines)] if spent else []


def nearest_preset(ran: Ran) -> tuple[tuple[str, Any], list[tuple[Option, Any]]]:
    """The preset from which the settings differ least, and the options that differ with the preset's values."""

    def differing(values: Any) -> list[tuple[Option, Any]]:
        found = options_given(ran.settings, values)
        return [(o, v) for o, v in found if o.path[0] not in ELSEWHERE]

    every = [(preset, differing(preset[1])) for preset in ran.presets.items()]
    return min(every, key=lambda one: len(one[1]))


def _facts(ran: Ran, preset: str) -> dict[str, str]:
    settings = ran.settings
    seed = getattr(settings, "seed", None)
    seed = getattr(getattr(settings, "train", None), "seed", None) if seed is None else seed
    return {
        "preset": preset if len(ran.presets) > 1 else "",
        "seed": "" if seed is None else str(seed),
        "seeds": str(settings.seeds) if getattr(settings, "seeds", 1) > 1 else "",
        "versions": ", ".join(versions()),
        "git commit": commit(),
        "devices": devices(),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
    }


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`" if text else "(none)"


def answers_sentence(
    rows: Sequence[Mapping[str, Any]], before: str, sources: Sequence[str] = (), shared: int = 0
) -> str:
    """How much the last judged model answers and what it gained; nothing where nothing was judged.

    Args:
      rows: of `by_skill`; before: the model that the gain is over; sources: models that it learned from; shared: how
        many of the problems were trained on, too.
    """
    total = {r["model"]: r for r in rows if r["skill"] == "all"}
    own = [model for model in total if model not in sources]
    if not own:
        return ""
    last = total[own[-1]]
    told = f"{own[-1]} answers {100 * last['accuracy']:.1f} % of {last['count']} "
    told += f"test problems, of which {shared} were trained on, too" if shared else "held-out problems"
    if before in total and before != own[-1]:
        told += f", {points(last['accuracy'] - total[before]['accuracy'])} the target before"
    best = max((total[s]["accuracy"] for s in sources if s in total), default=None)
    return f"{told}; the best source {100 * best:.1f} %." if best is not None else f"{told}."


def points(difference: float) -> str:
    """A difference of two shares in words: "27.3 points more than"."""
    shown = f"{abs(100 * difference):.1f}"
    return "as many as" if shown == "0.0" else f"{shown} points {'more' if difference > 0 else 'fewer'} than"


def measures_sentence(measures: Mapping[str, Mapping[str, float]], last: str, before: str, plain: str = "") -> str:
    """How well the last model knows held-out text, or answers, beside the target before and after plain training."""
    found, against = measures.get(last, {}), points
    measure = next((name for name in ("bits per byte", "accuracy") if name in found), "")
    if not measure:
        return f"{last} was trained; there was no held-out data, so that nothing was measured."
    told = f"{last} answers {100 * found[measure]:.1f} % of the held-out problems"
    if measure == "bits per byte":
        told, against = f"{last} needs {found[measure]:.4f} bits per byte of held-out text", _bits
    for name, words in ((before, "the target before"), (plain, plain)):
        if name in measures and name != last:
            told += f", {against(found[measure] - measures[name][measure])} {words}"
    return f"{told}."


def _bits(difference: float) -> str:
    return f"{abs(difference):.4f} {'fewer' if difference < 0 else 'more'} than"


def loss_sentence(losses: Mapping[str, tuple[Sequence[int], Sequence[float]]], records: int) -> str:
    """How far the loss fell over training: means of the first and of the last tenth of what was logged."""
    if "loss" not in losses:
        return ""
    steps, values = losses["loss"]
    tenth = -(-len(values) // 10)
    first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    if len(values) == 1:
        return f"The loss of the only step on {records} records is {values[0]:.4f}."
    moved = f"{'fell' if last < first else 'went'} from {first:.4f} to {last:.4f}"
    ends = f" (means of {tenth} logged steps at each end)" if tenth > 1 else ""
    return f"The loss {moved} in {steps[-1] + 1} steps on {records} records{ends}."
