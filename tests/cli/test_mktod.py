"""MK-TOD from end to end on a few dialogues, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from experiments import mktod
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.folder import load, save
from fusion_jax.plan.parts import plan_of
from fusion_jax.plan.programs import AlignStep
from fusion_jax.plan.requests import Request, from_json, to_json, useful_flops
from fusion_jax.plan.runs import Ask
from fusion_jax.runs.aligning import arm_of
from fusion_jax.runs.dialogue_data import miniature_system
from fusion_jax.train.mktod import MktodSettings
from fusion_jax.zoo import bookings
from tests.programs import Program
from tests.small import attempt, fails, script, virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")
SMALL = [
    "--miniature.dialogues", "16", "--miniature.towns", "2", "--miniature.town-dialogues", "3", "--miniature.places", "12",
    "--miniature.width", "32", "--miniature.layers", "1", "--raising.batch-size", "8", "--pretrain.batch-size", "8",
    "--joint.batch-size", "8", "--joint.epochs", "1", "--raising.epochs", "2", "--pretrain.epochs", "1",
    "--joint.checkpoint-every", "2", "--joint.eval-every", "2", "--joint.best-of", "2", "--answer-batch", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mktod") / "run"
    attempt(mktod, ["--out", str(out), "--arms", "full", *SMALL])
    return out


def test_a_run_from_files_to_a_report(once):
    out = once
    report, results = (out / "report.md").read_text(), json.loads((out / "results.json").read_text())
    assert list(results)[-1] == "full" and {"BM25", "frequency", "oracle", "pre-trained"} <= set(results)
    assert results["oracle"]["R@3"] == [100.0]
    for part in ("| model | entity F1 | BLEU | R@1 |", "turns with another top-1", "posterior_entropy", "recall.png"):
        assert part in report
    assert '<span class="bar"' in (out / "examples.html").read_text()
    test, answers = json.loads((out / "data/test.json").read_text()), read_jsonl(out / "answers/full.jsonl")
    assert [one["dialogue"] for one in answers] == [turn["did"] for turn in test]
    assert all(len(set(one["entities"])) == 3 for one in answers)
    logged = read_jsonl(out / "arms/full/metrics.jsonl")
    values = {line["step"] + 1: line["eval_f1"] for line in logged if "eval_f1" in line}
    assert len(values) > 1
    generator, retriever = load(out / "model/generator"), load(out / "model/retriever")
    assert generator.config.decoder and retriever.config.head.projected == 32


@pytest.mark.slow
def test_eight_devices_do_what_one_does(once, tmp_path):
    """A turn on each, the index of all entities among them."""
    out = tmp_path / "eight"
    arguments = ["--out", str(out), "--arms", "full", *SMALL, "--answer-batch", "8"]
    program = Program(script("mktod", *arguments), os.environ | virtual_devices(8) | {"JAX_PLATFORMS": "cpu"})
    _, errors = program.communicate()
    assert program.returncode == 0, errors
    for stage in ("raised", "retriever", "arms/full"):
        ours, one = ([line for line in read_jsonl(folder / stage / "metrics.jsonl") if "loss" in line] for folder in (out, once))
        assert len(ours) == len(one)
        assert ours[0]["loss"] == pytest.approx(one[0]["loss"], rel=2e-4), stage


def test_bad_input_is_refused(tmp_path, capsys):
    files = bookings.write_files(tmp_path / "data", 0, (4, 2, 2), count=12)
    system = miniature_system(0, 32, 1, 8)
    save(system.generator, tmp_path / "t5")
    save(system.retriever, tmp_path / "bert")
    given = {
        "--generator": str(tmp_path / "t5"), "--retriever": str(tmp_path / "bert"), "--knowledge": str(files.knowledge),
        "--entities": str(files.entities), "--train-turns": str(files.train), "--arms": "full",
        "--validation-turns": str(files.validation), "--test-turns": str(files.test), "--out": str(tmp_path / "run"),
    }  # fmt: skip

    def refused(changes: dict[str, str | None], *wanted: str) -> None:
        known = {name: value for name, value in (given | changes).items() if value is not None}
        fails(mktod, [word for pair in known.items() for word in pair], capsys, *wanted)
        assert not (tmp_path / "run" / "arms").exists()

    refused({"--test-turns": None}, "field '--test-turns'", "is missing beside the other files")
    refused({"--generator": None}, "field '--generator'", "is missing beside --knowledge")
    refused({"--generator": str(tmp_path / "bert")}, "bert is no encoder-decoder")
    refused({"--retriever": str(tmp_path / "t5")}, "t5 is no encoder alone")
    refused({"--arms": "everything"}, "'everything' is not one of its choices")
    refused({"--lengths.query": "400"}, "400 tokens exceed the retriever's 256 positions")
    refused({"--pretrain.batch-size": "4096"}, "'--pretrain.batch-size'", "do not fill one batch of 4096")
    entities = json.loads(files.knowledge.read_text())
    nameless = tmp_path / "nameless.json"
    nameless.write_text(json.dumps([{k: v for k, v in one.items() if k != "name"} for one in entities]))
    refused({"--knowledge": str(nameless)}, "no entity has the attribute 'name'", str(nameless))
    turns = json.loads(files.train.read_text())
    for field, value, wanted in (
        ("context_used", "<user>", "says nothing behind <user>"), ("context_used", "hello", "begins with 'hello'"),
        ("gt_db_idx", [99], "the knowledge base has 12 entities"),
    ):  # fmt: skip
        broken = tmp_path / "broken.json"
        broken.write_text(json.dumps([turns[0], {**turns[1], field: value}]))
        refused({"--train-turns": str(broken)}, "record 2", f"field '{field}", wanted)


def test_arms_change_one_thing_each():
    loss = MktodSettings()
    kinds = ("order", "confidence", "cooccurrence")
    told = {name: tuple(getattr(arm_of(name, loss), kind) for kind in kinds) for name in (
        "full", "no-tags", "no-order", "only-order", "no-confidence", "only-cooccurrence"
    )}  # fmt: skip
    assert told == {
        "full": (True,) * 3, "no-tags": (False,) * 3, "no-order": (False, True, True), "only-order": (True, False, False),
        "no-confidence": (True, False, True), "only-cooccurrence": (False, False, True),
    }  # fmt: skip
    assert arm_of("no-mml", loss).beta == 0 and not arm_of("no-negative", loss).negative
    assert arm_of("ctr", loss).variant == "ctr" and arm_of("ctr", loss).contrasts


def test_a_plan_has_the_joint_step_of_both_public_models():
    (planned,) = plan_of(mktod.parts(mktod.PRESETS["t5-large"]), Ask("v5e-8", rows=9943, preset="t5-large"))
    step = planned.request.program
    assert isinstance(step, AlignStep) and (step.examples, step.micro_batches) == (8, 8)
    assert step.passages == 6 and step.entities == 223 and step.own == 0 and planned.times == 1500
    assert planned.request.model["d_model"] == 1024 and step.retriever["projection_dim"] == 128
    again = from_json(json.loads(json.dumps(to_json(planned.request))))
    assert again == planned.request and useful_flops(again) > 0
    bare = dataclasses.replace(step, loss={**step.loss, "beta": 0.0})
    other = Request(again.slice, again.model, bare, again.mesh)
    assert useful_flops(other) < useful_flops(again)
