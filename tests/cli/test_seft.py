"""SEFT from end to end on a few records, and what it refuses."""

from __future__ import annotations

import json

import pytest

from experiments import seft
from fusion_jax.jsonl import read_jsonl
from tests.small import attempt, even_pairs, fails, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

SMALL = [
    "--target", "zoo:plants-target", "--reviser", "zoo:plants-target", "--zoo-pairs", "48", "--test-per-skill", "4",
    "--eval-samples", "0", "--evolution.rounds", "2", "--evolution.internal", "1", "--evolution.round-prompts", "12", "--baselines", "always-revise",
    "--evolution.drafts.batch-size", "16", "--evolution.drafts.num-samples", "2", "--evolution.revisions.batch-size", "16",
    "--warm-up.batch-size", "4", "--adapt.batch-size", "4", "--policy.batch-size", "4", "--adapt.epochs", "1",
    "--revising.preserve", "0.5",
]  # fmt: skip


def test_a_run_from_pairs_to_a_policy(tmp_path):
    out = tmp_path / "run"
    attempt(seft, ["--out", str(out), *SMALL])
    report, results = (out / "report.md").read_text(), json.loads((out / "results.json").read_text())
    assert {"Target", "plants-target", "always-revise", "SEFT-1", "SEFT-2"} <= set(results)
    for part in ("## The reviser", "AUC of p_keep", "| wrong |", "## Rounds", "| SEFT-2 |", "## Alarms", "round"):
        assert part in report
    pairs, prompts = read_jsonl(out / "pairs.jsonl"), read_jsonl(out / "prompts.jsonl")
    assert not {p["messages"][0]["content"] for p in pairs} & {p["prompt"] for p in prompts}
    first, second = (read_jsonl(out / f"SEFT-{n}/labels.jsonl") for n in (1, 2))
    assert len(first) == len(second) == 12 and not {r["prompt_id"] for r in first} & {r["prompt_id"] for r in second}
    assert all("revised" not in r for r in first)  # the internal round
    assert all(0 <= p <= 1 for r in [*first, *second] for p in r.get("p_keeps", ()))
    assert {r["label"] for r in read_jsonl(out / "adapt.jsonl")} == {"[KEEP]", "[REVISE]"}
    assert (out / "model/model.safetensors").exists()


def test_bad_input_is_refused(tmp_path, capsys):
    model = str(small_folder(tmp_path / "model", max_position_embeddings=256))
    args = ["--target", model, "--reviser", model, "--out", str(tmp_path / "run"), "--baselines", "SFT"]
    pairs = str(write(tmp_path / "pairs.jsonl", even_pairs(12)))
    prompts = str(write(tmp_path / "prompts.jsonl", [{"prompt": f"Reverse {i} b"} for i in range(4)]))
    fails(seft, [*args, "--pairs", pairs], capsys, "field '--prompts'", "is missing beside --pairs")
    fails(seft, [*args, "--prompts", prompts], capsys, "field '--pairs'", "is missing beside --prompts")
    fails(seft, [*args, "--revising.preserve", "0"], capsys, "out of range")
    fails(seft, [*args[:-2], "--baselines", "PPO"], capsys, "'PPO' is not one of its choices")
    both = ["--pairs", pairs, "--prompts", prompts]
    bare = str(write(tmp_path / "bare.jsonl", [{"prompt": "a", "chosen": "b"}]))
    fails(seft, [*args, "--pairs", bare, "--prompts", prompts], capsys, "record 1, field 'rejected'", bare)
    shared = str(write(tmp_path / "shared.jsonl", [{"prompt": p["prompt"]} for p in even_pairs(3)]))
    fails(seft, [*args, "--pairs", pairs, "--prompts", shared], capsys, "every prompt stands in a pair", shared)
    args[args.index(str(tmp_path / "run"))] = str(tmp_path / "other")
    fails(seft, [*args, *both], capsys, "field '--warm-up.batch-size'", "do not fill one batch of 16")
