"""KCA from end to end on a few invented people, ready records of the published form, and what it refuses."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from experiments import kca
from experiments.sweeps.files import EXPERIMENTS, read_sweep
from fusion_jax.asking.contract import Question
from fusion_jax.asking.given import Given
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl
from fusion_jax.kca.calibrate import REFUSAL
from fusion_jax.kca.exam import Sat
from fusion_jax.kca.records import CLASSES, KNOWN, NO_FACT, UNKNOWN, read_instances
from fusion_jax.models.folder import load
from fusion_jax.plan.parts import plan_of
from fusion_jax.plan.runs import Ask
from fusion_jax.runs import calibrating, desk, knowing
from fusion_jax.runs.calibrating import grade_of, verdict_of
from fusion_jax.runs.helpers import HelperSettings
from tests.small import attempt, fails, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")
SMALL = [
    "--world.people", "8", "--world.tested", "8", "--world.others", "6", "--miniature.width", "32", "--miniature.layers", "1",
    "--miniature.papers", "32", "--miniature.items", "2", "--miniature.raising.batch-size", "16", "--train.batch-size", "8",
    "--train.epochs", "1", "--max-new-tokens", "20", "--exam.shots", "1", "--exam.batch-size", "16",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_from_the_world_to_a_report(tmp_path):
    """Stages keep the ids of their sources, classes and losses add up, and every arm has its figures."""
    out = tmp_path / "run"
    attempt(
        kca,
        ["--out", str(out), "--arms", "standard", "refusal", "--result", "refusal", "--helpfulness", "True", *SMALL],
    )
    for name, count in (("train", 8 * 3 + 6), ("test", 8 * 3 + 2)):
        stages = [
            read_jsonl(out / name / f"{stage}.jsonl")
            for stage in ("1-requirement", "2-knowledge", "3-exam", "4-partition")
        ]
        assert len({tuple(line["id"] for line in lines) for lines in stages}) == 1 and len(stages[0]) == count
        last = stages[-1]
        labels = Counter(line.get("class", "lost") for line in last)
        assert sum(labels[one] for one in CLASSES) + labels["lost"] == count and labels[NO_FACT] == count - 24
        for line in last:
            right = sum(one["correct"] for one in line["sat"])
            assert line["class"] == (NO_FACT if not line["sat"] else KNOWN if right >= 2 else UNKNOWN)
        again = read_instances(str(out / name / "4-partition.jsonl"), "error", Counter())
        assert [one.label for one in again] == [line["class"] for line in last]
    assert re.search(r" test: .* % of 24 examined pass \(15.6 by guessing\)\n", (out / "log.txt").read_text())
    report, results = (out / "report.md").read_text(), json.loads((out / "results.json").read_text())
    assert set(results) == {"exam", "standard", "refusal"}
    assert {"passed", "by guessing", "passed, seen", "passed, unseen"} == set(results["exam"])
    assert {"hallucinated, of all", "refused", "wrong, unseen", "right, seen", "helpfulness"} <= set(results["refusal"])
    for part in ("| set | instances |", "by guessing", "standard on the same", "answers.png", "15.6 %"):
        assert part in report
    verdicts = read_jsonl(out / "verdicts/standard/test.jsonl")
    assert len(verdicts) == 26 and {line["unread"] for line in verdicts} == {""}
    assert "USER: " in load(out / "model").tokenizer.chat_template


def test_ready_partitions_need_no_helper(tmp_path, monkeypatch):
    """Published training items go straight to training; without a judge refusals are counted all the same."""
    base = small_folder(tmp_path / "base", max_position_embeddings=256)
    items = [
        {"id": str(i), "conversations": [{"from": "human", "value": f"What is {i} + 1?"}, {"from": "gpt", "value": str(i + 1)}],
         "class": CLASSES[i % 3], "analysis": "", "knowledge": "Sums." if i % 3 == 2 else ""}
        for i in range(12)
    ]  # fmt: skip
    tests = [{"input": f"What is {i} + 2?", "class": CLASSES[i % 3]} for i in range(4)]
    monkeypatch.setattr(
        calibrating, "generate", lambda model, asked, **how: [[REFUSAL if "1" in text else "3"] for text in asked]
    )
    out = tmp_path / "run"
    attempt(kca, [
        "--out", str(out), "--base", str(base), "--exams", str(write(tmp_path / "p.jsonl", items)), "--arms", "openbook",
        "--tests", str(write(tmp_path / "quiz.jsonl", tests)), "--result", "openbook", "--train.batch-size", "4",
    ])  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert results["openbook"] == {"refused": [0.25]} and "No judge was given." in (out / "report.md").read_text()
    assert Counter(line["class"] for line in read_jsonl(out / "train/4-partition.jsonl")) == dict.fromkeys(CLASSES, 4)


def test_a_refusal_arm_beside_the_standard_one(tmp_path, monkeypatch):
    """Published exams joined with the lines of stage 1, exemplars of a file, replies in the published form, ROUGE: the
    report has (a) to (d) of answers that are known."""
    answers = {"standard": ["right", "wrong", "wrong", "wrong", "wrong"],
               "refusal": ["right", "right", REFUSAL, REFUSAL, "wrong"]}  # fmt: skip
    arms, papers = iter(answers), []

    def sit(model, tests, paper, s, **how):
        papers.append(paper)
        return [Sat((0.0, -9.0, -9.0, -9.0), one.answer == "A") for one in tests], {}

    def judge(question: Question) -> str:
        return f"{int('wrong' in question.messages[-1].content)}\nspan\nwhy"

    monkeypatch.setattr(knowing, "sit", sit)
    monkeypatch.setattr(desk, "optimise", lambda model, *given, **named: model)
    monkeypatch.setattr(calibrating, "generate", lambda model, asked, **how: [[text] for text in answers[next(arms)]])
    monkeypatch.setattr(HelperSettings, "answerer", lambda self, *_: Given("judge", judge) if self.given else None)
    test = {"question": "Which?", "options": ["w", "x", "y", "z"]}
    stage_1 = [{"original_input": {"input": f"What is {i} + 1?", "output": str(i + 1)}, "analysis": "why",
                "final_prediction": "<need>" if i % 2 else "<no need>"} for i in range(8)]  # fmt: skip
    exams = [{"tests": [{**test, "answer": "AB"[i // 2 % 2]}], "original_input": {"knowledge": "Sums.", "original_input": line}}
             for i, line in enumerate(stage_1) if i % 2]  # fmt: skip
    labels = (NO_FACT, KNOWN, KNOWN, UNKNOWN, UNKNOWN)
    quiz = [{"input": f"Say {i}", "output": ["first", "right"], "class": label} for i, label in enumerate(labels)]
    files = {name: str(write(tmp_path / f"{name}.jsonl", lines)) for name, lines in (
        ("instructions", stage_1), ("exams", exams), ("tests", quiz), ("exam.exemplars", [{**test, "answer": "C"}]))}  # fmt: skip
    out = tmp_path / "run"
    attempt(kca, [
        "--out", str(out), "--base", str(small_folder(tmp_path / "base", max_position_embeddings=256)), "--max-new-tokens", "100",
        *(text for name, file in files.items() for text in (f"--{name}", file)), "--arms", "standard", "refusal",
        "--result", "refusal", "--compat", "True", "--rouge", "True", "--train.batch-size", "4", "--train.epochs", "1",
        "--judge.server", "http://127.0.0.1:1/v1", "--judge.served", "m",
    ])  # fmt: skip
    classes = Counter(line.get("class", "lost") for line in read_jsonl(out / "train/4-partition.jsonl"))
    assert classes == {NO_FACT: 4, KNOWN: 2, UNKNOWN: 2}
    assert [[one.answer for one in paper.exemplars] for paper in papers] == [["C"]] * 2
    results = json.loads((out / "results.json").read_text())
    assert results["refusal"] == {
        "hallucinated, of all": [0.2], "of the answered": [pytest.approx(1 / 3)], "refused": [0.4],
        "standard on the same": [pytest.approx(2 / 3)],
    }  # fmt: skip
    assert results["standard"]["hallucinated, of all"] == results["standard"]["of the answered"] == [0.8]
    report = (out / "report.md").read_text()
    (line,) = (line for line in report.splitlines() if line.startswith("| refusal | 20.0 ["))
    shares = [cell.split(" [")[0] for cell in line.strip("| ").split(" | ")]
    assert shares == ["refusal", "20.0", "33.3", "66.7", "40.0", "0.0", "50.0", "50.0", "0"]
    assert "rouge" in report.lower()


def test_bad_input_is_refused(tmp_path, capsys):
    base = str(small_folder(tmp_path / "base"))
    source = {"input": "ask", "output": "said"}
    good = str(write(tmp_path / "in.jsonl", [source] * 4))
    out = tmp_path / "run"

    def refused(args: list[str], *wanted: str) -> None:
        fails(kca, ["--out", str(out), *args], capsys, *wanted)
        assert not (out / "arms").exists()

    refused(["--result", "unknown"], "'--result'", "'unknown' is none of --arms")
    refused(["--preset", "llama2-7b"], "'--base'", "is missing: the miniature has 512 positions")
    refused(["--base", base], "'--instructions'", "is missing beside --base")
    refused(["--instructions", good], "'--instructions'", "is given without --base")
    refused(
        ["--helper.server", "http://127.0.0.1:1/v1", "--base", base, "--instructions", good],
        "'--helper.served'",
        "is missing",
    )
    refused(
        ["--helper.server", "ftp://x", "--helper.served", "m", "--base", base, "--instructions", good], "is no address"
    )
    refused(["--judge.model", base, "--judge.server", "http://127.0.0.1:1/v1", "--judge.served", "m", "--base", base,
             "--instructions", good], "'--judge.model'", "stands beside a server")  # fmt: skip
    refused(["--helpfulness", "True", "--base", base, "--instructions", good], "'--helpfulness'", "needs a judge")
    refused(["--again", "True"], "'--again'", "the miniature's helper makes the same exam")
    helped = ["--base", base, "--instructions", good, "--again", "True"]
    refused(helped, "'--again'", "needs a helper")
    refused([*helped, "--helper.model", base], "'--again'", "at a temperature of 0")
    refused(["--max-new-tokens", "12"], "'--max-new-tokens'", "12 tokens do not hold the sentence of --refusal")
    refused(["--refusal", " "], "refusal", "is blank")
    refused(["--exam.threshold", "1"], "--exam.threshold", "out of range")
    refused(["--exam.turns", "5"], "--exam.turns", "out of range")
    refused(
        ["--base", base, "--instructions", good], "'--helper'", "there is none", "are to be asked about: 4 of train"
    )
    broken = str(write(tmp_path / "broken.jsonl", [source, {"input": "ask", "output": 3}]))
    refused(["--base", base, "--instructions", broken], "broken.jsonl", "record 2", "field 'output'")
    refused(["--base", base, "--exams", good, "--arms", "discard"], "'--arms'", "'discard' has nothing to train on")


def test_verdicts_as_published_and_by_default():
    """What the published program counts as a hallucination although it could not be read, is no verdict by default."""
    from fusion_jax.asking.contract import Failure, Reply

    prose = Reply("I see nothing wrong.\n\nAll of it\n\nis in the note.", "stop")
    assert verdict_of(prose, compat=True) == {"hallucinated": True, "unread": ""}
    assert verdict_of(prose, compat=False)["hallucinated"] is None
    assert (
        verdict_of(Reply("Score: 0\nx\ny", "stop"), compat=True)["unread"] == "judge: the published parser stops here"
    )
    assert verdict_of(Reply("0\nnone\nfine", "stop"), compat=False) == {"hallucinated": False, "unread": ""}
    assert verdict_of(Failure("timeout"), compat=False) == {"hallucinated": None, "unread": "no reply: timeout"}
    assert grade_of(Failure("timeout"), compat=False) == {"helpfulness": None, "ungraded": "no reply: timeout"}
    assert grade_of(Reply("3 reasons.", "stop"), compat=False)["ungraded"] == "helpfulness: no JSON object"
    assert grade_of(Reply("9\nfine", "stop"), compat=True) == {"helpfulness": 9.0, "ungraded": ""}


def test_the_shipped_sweeps(tmp_path):
    found = sorted((EXPERIMENTS / "sweeps/kca").glob("*.yaml"))
    assert len(found) >= 5
    for path in found:
        sweep = read_sweep(path)
        assert sweep.experiment == "kca" and sweep.about and len(sweep.cells) > 1
        assert len({sweep.settings(cell, 1) for cell in sweep.cells}) == len(sweep.cells)


def test_a_plan_has_the_tuning_and_the_answers(tmp_path):
    assert plan_of(kca.parts(kca.PRESETS["tiny"]), Ask("v5p-8", preset="tiny")) == []
    planned = plan_of(kca.parts(kca.PRESETS["llama2-7b"]), Ask("v5p-8", rows=70_000, preset="llama2-7b"))
    assert planned[0].times == 3 * (70_000 // 128) and len(planned) > 1
    who = HelperSettings(model="nowhere")
    added = kca.parts(replace(kca.PRESETS["llama2-7b"], helper=who, judge=who))[-2:]
    assert [part.title for part in added] == ["helper's replies, each stage", "judge's replies, each arm"]
    for part in added:
        with pytest.raises(InputError, match="nowhere: there is no such folder"):
            part.check()
