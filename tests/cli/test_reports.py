"""What every report says first: one sentence of result and what was run; and how its figures are drawn."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib.colors
import pytest

from experiments import fusellm, sft, wrpo
from fusion_jax.evals.accuracy import by_skill
from fusion_jax.figures import greys, hue, smoothed
from fusion_jax.jsonl import write_jsonl
from fusion_jax.losses.reductions import Count, Mean
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.plots import accuracy_figure, training_figure
from fusion_jax.runs.provenance import (
    Ran,
    answers_sentence,
    loss_sentence,
    measures_sentence,
    nearest_preset,
    what_was_run,
    write_report,
)
from fusion_jax.settings import parse, to_json
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.store.times import times
from fusion_jax.train.evaluate import half_widths
from fusion_jax.versions import commit
from tests.small import attempt, even_pairs, pairs, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


def run_at(path: Path) -> RunFolder:
    return open_run(path, {"a": 1}, resume=False)


GIVEN = [
    (wrpo, "tiny", []), (wrpo, "tiny", ["--seed", "7", "--sources", "zoo:qwen-source"]),
    (wrpo, "llama3-8b", ["--target", "a b", "--preference.optimizer.learning-rate", "1e-6", "--no-baseline"]),
    (fusellm, "llama2-7b-official", ["--arms", "CLM,KD", "--fusion.tail", "bucket", "--hosts.count", "2", "--hosts.index", "0"]),
]  # fmt: skip


@pytest.mark.parametrize("module, preset, args", GIVEN, ids=lambda v: str(v)[:30])
def test_the_command_of_a_report_gives_the_same_settings(module, preset, args, tmp_path):
    settings = parse(module.PRESETS, ["--preset", preset, *args, "--out", str(tmp_path / "a run")])
    text = what_was_run(run_at(tmp_path / "run"), Ran(module.__file__, settings, module.PRESETS))
    python, script, *words = shlex.split(re.search(r"```\n(.*)\n```", text)[1])  # type: ignore[index]
    assert (python, script) == ("python", f"experiments/{Path(module.__file__).name}")
    again = parse(module.PRESETS, words)
    assert dataclasses.replace(again, hosts=settings.hosts) == settings
    changed = {o.name: before for o, before in nearest_preset(Ran("", settings, module.PRESETS))[1]}
    assert set(changed) == {a[2:].replace("no-", "") for a in args if a.startswith("--") and "hosts" not in a}
    assert f"| preset | {preset} |" in text
    for name in changed:
        assert f"| {name} | `" in text


def test_a_report_says_what_computed_it_and_how_long_over_all_starts(tmp_path):
    run = run_at(tmp_path / "run")
    for _ in range(2):
        write_jsonl(
            run.sub("sft").file("times.jsonl"),
            [{"stage": "training", "seconds": 5.0}, {"stage": "training", "seconds": 7.25}],
        )
        with run.timed("prompts.jsonl"):
            pass
    settings = wrpo.PRESETS["tiny"]
    write_report(run, "WRPO", "It works.", Ran(wrpo.__file__, settings, wrpo.PRESETS), ["## Numbers"])
    text = run.file("report.md").read_text()
    assert text.startswith(
        "# WRPO\n\n**It works.**\n\n## What was run\n\n```\npython experiments/wrpo.py --preset tiny\n```"
    )
    for name in ("jax", "jaxlib", "flax", "transformers", "python"):
        assert re.search(rf"\b{name} \d+\.\d+", text), name
    assert "| seed | 42 |" in text and re.search(r"\| devices \| \d+ x \w+ \(cpu\) \|", text)
    assert re.search(r"\| date \| 20\d\d-\d\d-\d\d \d\d:\d\d", text)
    assert "| sft: training | 12 |" in text and "| together | 12 |" in text and text.rstrip().endswith("## Numbers")
    assert list(times(run.path)) == ["prompts.jsonl", "sft: training"]


def test_the_commit_is_that_of_this_clone_only(tmp_path):
    assert commit(tmp_path) == ""
    assert re.fullmatch(r"([0-9a-f]{12}( and changes)?)?", commit())


ROWS = [
    {"model": m, "skill": "all", "accuracy": a, "low": a - 0.05, "high": a + 0.05, "count": 420}
    for m, a in (("Target", 0.451), ("S1", 0.6), ("S2", 0.65), ("SFT", 0.6), ("SFT-WRPO", 0.724))
]  # fmt: skip


def test_sentences_of_results():
    assert answers_sentence(ROWS, "Target", ["S1", "S2"]) == (
        "SFT-WRPO answers 72.4 % of 420 held-out problems, 27.3 points more than the target before; the best source 65.0 %."
    )
    assert answers_sentence(ROWS[:1], "Target") == "Target answers 45.1 % of 420 held-out problems."
    worse = [{**ROWS[0], "accuracy": 0.8}, ROWS[-1]]
    assert (
        "7.6 points fewer than the target before." in answers_sentence(worse, "Target")
        and answers_sentence([], "Target") == ""
    )
    bits = {"target": {"bits per byte": 1.0}, "CLM": {"bits per byte": 0.9}, "FuseLLM": {"bits per byte": 0.85}}
    assert measures_sentence(bits, "FuseLLM", "target", "CLM") == (
        "FuseLLM needs 0.8500 bits per byte of held-out text, 0.1500 fewer than the target before, 0.0500 fewer than CLM."
    )
    assert measures_sentence({"t": {"accuracy": 0.5}, "F": {"accuracy": 0.5}}, "F", "t") == (
        "F answers 50.0 % of the held-out problems, as many as the target before."
    )
    assert "nothing was measured" in measures_sentence({"t": {}, "F": {}}, "F", "t")
    assert (
        loss_sentence({"loss": ([0, 4], [2.0, 1.0])}, 16)
        == "The loss fell from 2.0000 to 1.0000 in 5 steps on 16 records."
    )


def test_the_report_of_a_whole_run(tmp_path, capsys):
    """SFT on a small model: the sentence, the command, the difference from the preset and the stage's time."""
    model = small_folder(tmp_path / "model")
    data = write(tmp_path / "d.jsonl", [{"prompt": p["prompt"], "response": p["chosen"]} for p in pairs(8)])
    args = ["--model", str(model), "--data", str(data), "--train.batch-size", "4", "--out", str(tmp_path / "run")]
    attempt(sft, args)
    text = (tmp_path / "run/report.md").read_text()
    assert re.match(r"# SFT\n\n\*\*The loss (fell|went) from [\d.]+ to [\d.]+ in 4 steps on 8 records\.\*\*\n", text)
    assert f"--train.batch-size 4 --out {tmp_path / 'run'}" in text.replace("\\\n", "")
    assert "| train.batch-size | `4` | `16` |" in text and re.search(r"\| training \| \d+ \|", text)


@pytest.mark.parametrize("packing", ["none", "official"])
def test_sft_reports_the_loss_of_held_out_records(tmp_path, packing):
    """Records that are kept are not trained on; without a share of them there is no such loss."""
    model = small_folder(tmp_path / "model")
    data = write(tmp_path / "d.jsonl", [{"prompt": p["prompt"], "response": p["chosen"]} for p in even_pairs(24)])
    args = ["--model", str(model), "--data", str(data), "--train.batch-size", "2", "--train.epochs", "1"]
    args += ["--text.packing", packing, "--train.remat", "none"]
    for share in ("0.25", "0"):
        out = tmp_path / f"run-{share}"
        attempt(sft, [*args, "--held-out", share, "--out", str(out)])
        text, results = (out / "report.md").read_text(), json.loads((out / "results.json").read_text())["SFT"]
        assert ("| final eval_loss |" in text) == ("eval_loss" in results) == (share == "0.25")
        if packing == "none":
            assert f"| records | used | {18 if share == '0.25' else 24} |" in text
            assert ("| records | held out | 6 |" in text) == (share == "0.25")


def lightness(colour: Any) -> float:
    return sum(matplotlib.colors.to_rgb(colour)) / 3


def test_sources_are_grey_and_stages_go_from_light_to_dark():
    axes = accuracy_figure(ROWS, ["S1", "S2"]).axes[0]
    bars = {
        c.get_label(): c.patches[0].get_facecolor()
        for c in axes.containers
        if c.get_label() in {r["model"] for r in ROWS}
    }
    for source in ("S1", "S2"):
        red, green, blue = bars[source][:3]
        assert red == green == blue
    stages = [bars[m] for m in ("Target", "SFT", "SFT-WRPO")]
    assert [lightness(c) for c in stages] == sorted(map(lightness, stages), reverse=True)
    assert all(c[2] > c[0] for c in stages)
    assert hue(0) == greys(0) == [] and len(hue(1)) == len(greys(1)) == 1
    accuracy_figure(by_skill("Target", [{"right": 1}]), ["absent"])


def logged(folder: Path, names: list[str], held: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    lines = [{"step": i, **{n: float(i % 3) for n in names}} for i in range(40)]
    write_jsonl(folder / "metrics.jsonl", [*lines, {"step": 39, **held}] if held else lines)
    return folder


def test_a_panel_holds_one_quantity_with_raw_curves_light_and_held_out_intervals(tmp_path):
    """Losses of other objectives are other quantities; what was never logged has no panel."""
    held = {"eval_rewards/accuracies": 0.75, "eval_examples": 32.0, "eval_loss": 1.0, "eval_loss/half": 0.25}
    stages = {
        "sft": logged(tmp_path / "sft", ["loss"], {}),
        "dpo": logged(tmp_path / "dpo", ["loss", "rewards/chosen", "rewards/margins", "rewards/accuracies"], held),
        "wrpo": logged(tmp_path / "wrpo", ["loss", "cur_alpha", "rewards/source_chosen", "rewards/margins"], {}),
    }
    panels = {axes.get_title(loc="left"): axes for axes in training_figure(stages).axes if axes.get_visible()}
    assert set(panels) == {
        "loss of sft", "loss of dpo", "loss of wrpo", "weight of the source's response (alpha)", "reward margin",
        "reward of the source's chosen response", "reward of the chosen response", "share of pairs ranked rightly",
    }  # fmt: skip
    raw, smooth, *_ = panels["reward margin"].lines
    assert raw.get_alpha() < 0.5 and smooth.get_linewidth() > raw.get_linewidth()
    band = panels["share of pairs ranked rightly"].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.579, abs=0.002) and band.max() == pytest.approx(0.867, abs=0.002)
    band = panels["loss of dpo"].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.75, 1.25)
    assert len(training_figure({"a": tmp_path / "none"}).axes) == 1


def test_smoothing_andhalf_widths():
    assert smoothed([1.0] * 50).tolist() == [1.0] * 50
    assert smoothed([0.0, 3.0, 0.0]).tolist() == pytest.approx([1.5, 1.0, 1.5])
    parts: list[Any] = [{"loss": Mean(2.0 * value, 2.0), "tokens": Count(3.0)} for value in (1.0, 2.0, 3.0, 4.0)]
    (half,) = half_widths(parts).values()
    assert half == pytest.approx(3.182446 * (5 / 3) ** 0.5 / 2, rel=1e-5)  # Student's t times s / sqrt(n)
    assert half_widths(parts[:3]) == {}


def test_settings_of_a_run_stay_plain_json():
    assert json.dumps(to_json(wrpo.PRESETS["tiny"]))
