"""The stages at a desk, with a helper of rules and an exam whose answers are known."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from fusion_jax.asking import local
from fusion_jax.asking.given import Given
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl
from fusion_jax.kca.exam import Sat
from fusion_jax.kca.papers import Paper
from fusion_jax.kca.records import KNOWN, NEED, NO_FACT, NO_NEED, ExamItem, Instance, Need, Source
from fusion_jax.runs import knowing
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.helpers import HelperSettings
from fusion_jax.runs.knowing import Knowing, KnowingSettings
from fusion_jax.runs.knowledge_parts import asked_later, opened
from fusion_jax.runs.provenance import Ran
from fusion_jax.store.run_folder import RunFolder
from tests.small import write

MODEL = SimpleNamespace(config=None)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Desk:
    """Everybody chooses A in the exam."""

    def sit(model, tests, paper, s, **how):
        return [Sat((0.0, -9.0, -9.0, -9.0), one.answer == "A") for one in tests], {}

    monkeypatch.setattr(knowing, "sit", sit)
    monkeypatch.setattr(knowing, "decoding_mesh", lambda config: None)
    return Desk(RunFolder(tmp_path / "run", Console(quiet=True)), "", Ran("", SimpleNamespace(seed=0), {}))


def noted(*names: str) -> list[Instance]:
    """Instances behind stage 2."""
    return [Instance(Source(name, f"ask {name}", "said"), Need(NEED), f"note of {name}") for name in names]


def test_questions_that_the_published_parser_keeps_are_examined(desk):
    """Two options that are alike are no reason for it, and the stage's own file loses nothing on being read."""
    reply = "Question: Which?\nOptions: (A) red (B) red (C) green (D) pink\nAnalysis: so\nAnswer: (A)"
    made = Knowing(desk, KnowingSettings(compat=True), Paper(), Given("rules", lambda question: reply))
    (found,) = made.questioned("train", noted("x"))
    assert [one.options for one in found.tests] == [("red", "red", "green", "pink")] and not found.lost
    (found,) = made.examined("train", MODEL, [found])
    assert found.label == KNOWN and len(found.tests) == 1 and made.passed("train", [found]).questions == 1
    assert len(read_jsonl(desk.run.file("train/4-partition.jsonl"))[0]["tests"]) == 1


def test_sets_that_need_a_helper_are_told_before_a_model_is_loaded(desk, tmp_path):
    ready = {"input": "ask", "output": "said", "class": KNOWN}
    exams, tests = write(tmp_path / "train.jsonl", [ready]), write(tmp_path / "lima.jsonl", [{"input": "ask"}, ready])
    settings = KnowingSettings(base="nowhere", exams=str(exams), tests=(str(tests),))
    with pytest.raises(
        InputError, match="'--helper': there is none, and instances are to be asked about: 1 of test-lima"
    ):
        opened(settings, desk)


def test_a_model_that_helps_is_loaded_for_what_the_log_lacks(desk, tmp_path, monkeypatch):
    """And called by the name under which the log holds its replies; it goes before the base model is examined."""
    loads, folder = [], tmp_path / "helper"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(local, "load_to_sample", lambda *given, **named: MODEL)
    monkeypatch.setattr(local, "decoding_mesh", lambda *given: None)

    def loaded(self, desk, option):
        loads.append(option)
        return Given("another name", lambda question: '{"label": "no_need"}', together=True)

    monkeypatch.setattr(HelperSettings, "answerer", loaded)
    settings = KnowingSettings(helper=HelperSettings(model=str(folder)))
    first, second = (Knowing(desk, settings, Paper(), asked_later(settings.helper, desk, "--helper")) for _ in "12")
    assert not loads and first.helper.identity == local.from_folder(folder).identity
    asked = [Instance(Source(name, f"ask {name}", "said")) for name in "ab"]
    assert [one.need.label for one in first.required("train", asked)] == [NO_NEED] * 2 and loads == ["--helper"]
    second.required("test", asked)
    assert loads == ["--helper"]
    first.dismiss()
    first.required("other", [Instance(Source("c", "ask c", "said"))])
    assert loads == ["--helper"] * 2


def test_second_exams_are_compared_with_the_first_where_there_are_two(desk):
    """An instance without a note keeps its only exam, and one that needs no facts has none: neither counts."""

    def exam(letter: str) -> str:
        test = {"question": "Which?", "options": ["w", "x", "y", "z"], "answer": letter}
        return json.dumps({"tests": [test]})

    replies = iter([exam("A"), exam("A"), exam("A"), exam("B")])  # first exams on a and c, then second ones
    made = Knowing(desk, KnowingSettings(), Paper(), Given("rules", lambda question: next(replies)))
    a, b, c = noted("a", "b", "c")
    only = dataclasses.replace(b, knowledge="", tests=(ExamItem("Which?", ("w", "x", "y", "z"), "A"),))
    none = Instance(Source("d", "ask d", "said"), Need(NO_NEED))
    questioned = made.questioned("train", [a, only, c, none])
    first = made.examined("train", MODEL, questioned)
    assert [one.label for one in first] == [KNOWN, KNOWN, KNOWN, NO_FACT]
    again = made.questioned_again("train", questioned)
    assert [one.id for one in again] == ["a", "c"]
    assert made.agreement("train", MODEL, again, first) == 0.5
    assert math.isnan(made.agreement("other", MODEL, made.questioned_again("other", [only, none]), first))
