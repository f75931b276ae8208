"""SEFT from end to end on a few records, and what it refuses."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from experiments import seft
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.folder import save
from fusion_jax.runs import revision_data
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.provenance import Ran
from fusion_jax.runs.revision_data import RevisionSettings
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.settings import TrainSettings
from tests.small import attempt, even_pairs, fails, small_folder, small_model, write

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
    assert next(iter(results)) == "Target"  # that of which the last model's gain over the first is told
    for part in ("## The reviser", "AUC of p_keep", "| wrong |", "## Rounds", "| SEFT-2 |", "## Alarms", "round"):
        assert part in report
    pairs, prompts = read_jsonl(out / "pairs.jsonl"), read_jsonl(out / "prompts.jsonl")
    assert not {p["messages"][0]["content"] for p in pairs} & {p["prompt"] for p in prompts}
    first, second = (read_jsonl(out / f"SEFT-{n}/labels.jsonl") for n in (1, 2))
    assert len(first) == len(second) == 12 and not {r["prompt_id"] for r in first} & {r["prompt_id"] for r in second}
    assert len(read_jsonl(out / "SEFT-1/rewards.jsonl")) == 12
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
    same = str(small_folder(tmp_path / "SFT"))
    judge = str(small_folder(tmp_path / "judge", num_labels=1, max_position_embeddings=40))
    known = dict(zip([*args, *both][::2], [*args, *both][1::2])) | {"--evolution.rounds": "1"}
    for option, value, *wanted in (
        ("--evolution.rounds", "3", "'--evolution.round-prompts'", "4 prompts are too few for 3 rounds", "it to 1 or"),
        ("--baselines", "best-of-n", "'--baselines'", "best-of-n has nothing to choose by"),
        ("--text.packing", "official", "'--text.packing'", "SEFT learns answers"),
        ("--text.tokens.max-length", "250", "'--evolution.revisions.max-new-tokens'", "exceed its 256 positions"),
        ("--reviser", same, "'--reviser'", "two models are called 'SFT'"),
        ("--reward-model", judge, "'--evolution.drafts.max-new-tokens'", "exceed the model's 40 positions"),
        ("--evolution.rounds", "1", "'--warm-up.batch-size'", "do not fill one batch of 16"),
    ):
        given = known | {option: value, "--out": str(tmp_path / f"{option}{value[-1]}")}
        fails(seft, [part for pair in given.items() for part in pair], capsys, *wanted)


def test_of_several_pairs_of_a_prompt_the_first_is_taken(tmp_path):
    """Two would stand on both sides of the split, and one answer could be the good one here and the bad one there."""
    said = [("a", "good", "bad"), ("b", "x", "y"), ("a", "bad", "worse"), ("a", "good", "worse")]
    file = write(tmp_path / "pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in said])
    settings = RevisionSettings(pairs=str(file))
    desk = Desk(RunFolder(tmp_path / "run", Console(quiet=True)), "", Ran("", settings, {}))
    found = revision_data.pairs_of(settings, desk, small_model())
    assert [(p.messages[0]["content"], p.chosen, p.rejected) for p in found] == [("a", "good", "bad"), ("b", "x", "y")]
    assert +desk.counts["pairs"] == {"used": 2, "another pair of its prompt": 2}


def test_a_reward_model_that_reads_no_answer_rewards_none(tmp_path):
    """Where its template changes all of them."""
    model = small_model(num_labels=1)
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("| trim", "| replace('~', '') | trim")
    save(model, tmp_path / "judge")
    settings = RevisionSettings(reward_model=str(tmp_path / "judge"))
    desk = Desk(RunFolder(tmp_path / "run", Console(quiet=True)), "", Ran("", settings, {}))
    judge = revision_data.judge_of(settings, desk, TrainSettings())
    assert judge([{"prompt": "a", "response": "b~"}]) == [None] and judge([]) == []
