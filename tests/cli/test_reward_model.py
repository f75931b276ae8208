"""A reward model from pairs to a folder that judges responses."""

from __future__ import annotations

import json

import pytest

from experiments import fusechat3, reward_model
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.folder import load
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.zoo import drafts, plants
from tests.cli.test_preference_pages import SHORT
from tests.small import attempt, even_pairs, fails, responses, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


def test_a_model_trained_on_pairs_judges_a_run(tmp_path):
    target, out = small_folder(tmp_path / "target"), tmp_path / "judge"
    records = even_pairs(50)
    data = write(tmp_path / "pairs.jsonl", [*records, {**records[0], "rejected": "no " * 200}])
    attempt(reward_model, [
        "--model", str(target), "--data", str(data), "--out", str(out), "--max-length", "96", "--held-out", "0.2",
        "--sft-first", "True", "--sft.batch-size", "8", "--train.batch-size", "8", "--train.epochs", "6", "--train.remat", "none",
        "--train.optimizer.learning-rate", "5e-3",
    ])  # fmt: skip
    found = json.loads((out / "results.json").read_text())["reward"]
    assert found["eval_rewards/accuracies"] == [1.0] and found["eval_loss"][0] < 0.5
    assert "longer than the reward model reads | 1" in (out / "report.md").read_text()
    judge = load(out / "model")
    assert judge.config.head.labels == 1
    answers = [{"prompt": r["prompt"], "response": r[side]} for r in records[:4] for side in ("chosen", "rejected")]
    rewards = [record["reward"] for record in score_responses(judge, answers)]
    assert all(good > bad for good, bad in zip(rewards[::2], rewards[1::2], strict=True))

    given = [{k: v for k, v in r.items() if k != "reward"} for r in responses(24)]
    run, least = tmp_path / "run", ["--rules.least-gap", "0", "--rules.most-gap", "100"]
    attempt(fusechat3, [
        *SHORT, "--target", str(target), "--responses", str(write(tmp_path / "given.jsonl", given)), "--out", str(run),
        "--reward-model", str(out / "model"), *least,
    ])  # fmt: skip
    judged = read_jsonl(run / "checked.jsonl")
    expected = [record["reward"] for record in score_responses(judge, judged)]
    assert [record["reward"] for record in judged] == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_trained_is_told(tmp_path, capsys):
    several = small_folder(tmp_path / "several", num_labels=3)
    data = write(tmp_path / "pairs.jsonl", even_pairs(40))
    out = ["--out", str(tmp_path / "o"), "--data", str(data)]
    fails(
        reward_model, [*out, "--model", str(several), "--max-length", "96"], capsys, "3 scores, a reward model has one"
    )
    fails(reward_model, [*out, "--max-length", "1"], capsys, "--max-length")
    fails(reward_model, [*out, "--sft.best-of", "2"], capsys, "--sft.best-of")
    judge = small_folder(tmp_path / "judge", num_labels=1)
    fails(
        reward_model, [*out, "--model", str(judge), "--max-length", "96", "--sft-first", "True"], capsys, "--sft-first"
    )
    target = str(small_folder(tmp_path / "target"))
    short = [*out, "--model", target, "--max-length", "8", "--sft-first", "True"]
    fails(reward_model, short, capsys, "longer than the reward model reads 39", "Raise --max-length")
    assert not (tmp_path / "o" / "sft").exists()


def test_the_chosen_answer_about_a_plant_has_more_right():
    prompts = plants.prompts(300, split="train", seed=3, repeat=True)
    for record, pair in zip(prompts, drafts.graded(prompts, seed=3), strict=True):
        true = drafts.properties(record["answer"])
        right = [sum(value in pair[side] for value in true.values()) for side in ("chosen", "rejected")]
        assert right[0] == 4 > right[1] and pair["prompt"] == record["prompt"]
