"""Explicit fusion as a user runs it: whole small runs, what they leave behind, resuming, what they refuse."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import fusechat, fusellm
from fusion_jax.jsonl import read_jsonl
from fusion_jax.zoo.tasks import SKILLS, documents
from tests.small import attempt, fails, pairs, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    many = documents(dict.fromkeys(SKILLS, 4), split="train", seed=0)
    write(folder / "texts.jsonl", [{"text": t} for t in [*many, " "]])
    return write(folder / "held.jsonl", [{"text": t} for t in many[:8]]).parent


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    turns = [
        {"conversations": [
            {"from": "human", "value": p["prompt"]}, {"from": "gpt", "value": p["chosen"]},
            {"from": "human", "value": "Again"}, {"from": "gpt", "value": p["chosen"]},
        ]} for p in pairs(16)
    ]  # fmt: skip
    return write(folder / "chats.jsonl", turns)


def test_published_presets_compare_raw_strings_and_the_default_bytes():
    for module in (fusellm, fusechat):
        for name, preset in module.PRESETS.items():
            published = name != "tiny"
            assert preset.align.pieces == ("raw" if published else "bytes")
            assert preset.align.ms_weight == ("code" if published else "inverse")


@pytest.mark.slow
def test_fusellm_from_texts_to_folders_and_on_from_where_it_was_cut(tmp_path, texts):
    """Every arm trained on the same texts; resumed with one arm's model gone, the same weights come again."""
    out = tmp_path / "run"
    args = [
        "--out", str(out), "--sources", "zoo:qwen-source", "--practice", "0", "--target-practice", "0", "--train.epochs", "1", "--train.batch-size", "8", "--teacher-batch", "16",
        "--texts", str(texts / "texts.jsonl"), "--held-out-texts", str(texts / "held.jsonl"),
        "--packing", "reset", "--max-length", "40", "--train.batch-size", "4", "--arms", "CLM", "FuseLLM",
    ]  # fmt: skip
    attempt(fusellm, args)
    report = (out / "report.md").read_text()
    for wanted in ("| CLM |", "| FuseLLM |", "bits per byte", "| blank texts | 1 |", "| texts | 29 |", "one_to_one"):
        assert wanted in report
    weights = {arm: load_file(out / f"arms/{arm}/model/model.safetensors") for arm in ("CLM", "FuseLLM")}
    name = next(iter(weights["CLM"]))
    assert not np.array_equal(weights["CLM"][name], weights["FuseLLM"][name])
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(out / "model")
    (out / "finished.json").unlink()
    shutil.rmtree(out / "arms/FuseLLM")
    attempt(fusellm, [*args, "--resume", "True"])
    again = load_file(out / "arms/FuseLLM/model/model.safetensors")
    assert all(np.array_equal(again[k], v) for k, v in weights["FuseLLM"].items())


@pytest.mark.parametrize("template", ["own", pytest.param("pivot", marks=pytest.mark.slow)])
def test_fusechat_leaves_a_target_a_source(tmp_path, chats, template):
    out = tmp_path / "run"
    attempt(fusechat, [
        "--out", str(out), "--sources", "zoo:gemma-source", "--chats", str(chats), "--template", template,
        "--arms", "pairwise", "--train.epochs", "1", "--train.batch-size", "8", "--teacher-batch", "16",
    ])  # fmt: skip
    assert {p.name for p in (out / "targets").iterdir()} == {"with-gemma-source"}
    report = (out / "report.md").read_text()
    assert "nothing is measured" in report and "| model |" not in report
    steps = read_jsonl(out / "arms/with-gemma-source/metrics.jsonl")
    assert steps[-1]["lambda"] == pytest.approx(0.9)
    expected = 0.9 * steps[-1]["loss/language"] + 0.1 * steps[-1]["loss/fusion"]
    assert steps[-1]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "module, args, wanted",
    [
        (fusellm, ["--arms", "Fuse"], ["field '--arms': 'Fuse' is not one of its choices", "one of CLM, KD, FuseLLM"]),
        (fusellm, ["--arms"], ["field '--arms': is given without a value. Give one or more"]),
        (fusellm, ["--arms", "CLM", "KD", "CLM"], ["field '--arms': 'CLM' stands twice"]),
        (fusechat, ["--arms", "SFT", "SFT"], ["field '--arms': 'SFT' stands twice"]),
        (fusellm, ["--sources", "zoo:qwen"], ["field '--sources'", "no model 'qwen'"]),
        (fusellm, ["--sources", "zoo:target"], ["two models are called 'target'"]),
        (fusellm, ["--texts", "nowhere.jsonl", "--practice", "0", "--target-practice", "0"], ["nowhere.jsonl"]),
        (fusellm, ["--sources"], ["sources"]),
        (fusellm, ["--k", "301", "--practice", "0", "--target-practice", "0"], ["field '--k'", "301 entries"]),
        (fusellm, ["--k", "0"], ["field '--k'", "out of range"]),
        (fusechat, ["--chats", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (fusechat, ["--fusion.weight", "1.5"], ["weight", "out of range"]),
        (fusechat, ["--arms"], ["arms"]),
    ],
)
def test_what_is_refused_before_anything_is_made(tmp_path, capsys, module, args, wanted):
    fails(module, ["--out", str(tmp_path / "run"), *args], capsys, *wanted)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.array_record"))


def test_chats_longer_than_the_limit_are_left_out_and_counted(tmp_path, capsys, chats):
    args = ["--out", str(tmp_path / "run"), "--chats", str(chats), "--sources", "zoo:gemma-source"]
    fails(fusechat, [*args, "--max-length", "20"], capsys, "all are longer than 20 tokens", "chats.jsonl")
    fails(
        fusechat,
        [*args, "--max-length", "75"],
        capsys,
        "longer than max_length in some tokenizer",
        "--train.batch-size",
    )
