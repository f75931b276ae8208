"""Replies of the helper and the judges: the tables of the specification under `compat_`, what is clear by default."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fusion_jax.kca import parsers, prompts
from fusion_jax.kca.parsers import (
    compat_exam,
    compat_need,
    compat_verdict,
    letter_in,
    read_exam,
    read_need,
    read_verdict,
)
from fusion_jax.kca.records import NEED, NO_NEED, ExamItem, Need

NEED_REPLIES = {
    "exact": "##Analysis: It asks for a date.\n##Prediction: <need>\n##Search Query: when\nwhere",
    "full stop": "Analysis: It asks for a date.\nPrediction: <need>.\nSearch Query: when",
    "word in the analysis": "Analysis: My Prediction: it is a fact.\nPrediction: <need>\nSearch Query: when",
    "misspelt queries": "Analysis: A date.\nPrediction: <need>\nSearch Qurey: when",
    "no queries": "Analysis: A date.\nPrediction: <need>",
    "another command": "Analysis: Play.\nPrediction: <no need>\nSearch Query:\nCommand: the next\nPrediction: <need>",
}


def question(options: str, answer: str, analysis: str = "Analysis: The note says so.\n") -> str:
    return f"Question: Which?\nOptions:\n{options}\n{analysis}Answer: {answer}"


OPTIONS = "(A) red\n(B) blue\n(C) green\n(D) pink"


@pytest.mark.parametrize(
    "name, label", [("exact", NEED), ("full stop", ""), ("word in the analysis", ""), ("misspelt queries", ""),
                    ("no queries", NEED), ("another command", NO_NEED)],
)  # fmt: skip
def test_requirement_as_published(name, label):
    found = compat_need(NEED_REPLIES[name])
    assert found.label == label and bool(found.lost) == (not label)
    assert found.queries == (("when", "where") if name == "exact" else ())


def test_requirement_by_default_takes_what_is_clear():
    assert {name: read_need(text).label for name, text in NEED_REPLIES.items()} == {
        **dict.fromkeys(NEED_REPLIES, NEED), "another command": NO_NEED,
    }  # fmt: skip
    assert read_need(NEED_REPLIES["misspelt queries"]).queries == ("when",)
    reply = {"analysis": "a", "label": "need", "queries": [str(i) for i in range(9)]}
    assert read_need(f"Sure:\n```json\n{json.dumps(reply)}\n```") == Need(NEED, "a", ("0", "1", "2", "3", "4"))
    assert read_need("I would rather not say.") == Need("", lost="stage 1: no JSON object")
    assert read_need('{"label": "maybe"}').lost.startswith("stage 1: field 'label'")


@pytest.mark.parametrize(
    "answer, published", [("(B)", "B"), ("b", "B"), ("-(B)-", "B"), ("(B) x", "B"), ("The correct option is (B)", ""),
                          ("Answer is B", ""), ("(B) a cab", "")],
)  # fmt: skip
def test_answers_of_questions(answer, published):
    """What the published parser rejects although it is clear, the default one takes."""
    found = compat_exam(question(OPTIONS, answer))
    assert [one.answer for one in found] == ([published] if published else [])
    assert letter_in(answer) == "B"
    assert [one.answer for one in read_exam(question(OPTIONS, answer), Counter())] == ["B"]


@pytest.mark.parametrize(
    "answer", ["(A) or (B)", "A) and C)", "(C) and (D) are both right", "A or (B)", "(B) or C", "A), and B", "A, B",
               "A|B|C|D", "(A)(B)", "A) red and C) green", "a) or b)", "None of them"],
)  # fmt: skip
def test_answers_that_name_several_letters_name_none(answer):
    assert letter_in(answer) == ""


@pytest.mark.parametrize("answer", ["(B) vitamins A and C", "B. A/B tests", "**B**", "(B) what has (vitamin C)"])
def test_letters_in_the_option_behind_the_letter_do_not_count(answer):
    assert letter_in(answer) == "B"


def test_questions_as_published_and_by_default():
    fine = ExamItem("Which?", ("red", "blue", "green", "pink"), "B", "The note says so.")
    dotted, counts = question(OPTIONS.replace("(", "").replace(")", "."), "(B)"), Counter[str]()
    assert compat_exam(question(OPTIONS, "B")) == [fine] == read_exam(question(OPTIONS, "B"), counts)
    assert compat_exam(dotted) == [] and read_exam(dotted, counts) == [fine]
    without = question(OPTIONS, "B", analysis="")
    assert compat_exam(without) == [] and read_exam(without, counts) == [fine._replace(analysis="")]
    assert compat_exam(question(OPTIONS, "B", "Analysis: The Answer: is there.\n")) == []
    for options in ("(A) red\n(B) blue\n(C) green", "(A) as (A)\n(B) blue\n(C) green\n(D) pink"):
        assert compat_exam(question(options, "B")) == [] == read_exam(question(options, "B"), counts)
    assert counts["question: not four options"] == 2
    four = "\n".join(question(OPTIONS, "B") for _ in range(4))
    assert len(compat_exam(four)) == 4 and len(read_exam(four, counts)) == 3
    assert counts["question: more than asked for"] == 1


def test_broken_questions_are_counted():
    good = {"question": "Which?", "options": ["a", "b", "c", "d"], "analysis": "", "answer": "(c)"}
    bad = [{**good, "answer": "E"}, {**good, "options": ["a", "b", "A ", "d"]}, {**good, "question": " "},
           {"question": "x"}, {**good, "answer": 1}, "x"]  # fmt: skip
    counts = Counter[str]()
    found = read_exam(json.dumps({"tests": [*bad, good]}), counts)
    assert [one.answer for one in found] == ["C"]
    assert +counts == {
        "question: answer is none of A to D": 1,
        "question: options alike": 1,
        "question: blank question": 1,
        "question: field 'options' is missing": 1,
        "question: field 'answer' is no str": 1,
        "question: no JSON object": 1,
    }
    counts.clear()
    assert read_exam("No.", counts) == [] and +counts == {"stage 3: no JSON object": 1}
    assert read_exam('{"tests": 3}', counts) == [] and counts["stage 3: field 'tests' is no list"] == 1
    assert read_exam('{"test": []}', counts) == [] and counts["stage 3: field 'tests' is missing"] == 1


def test_verdicts():
    """A verdict of 0 with paragraphs behind it is 0; what cannot be read is no verdict, and never a hallucination."""
    explained = "0\n\nThe answer is right.\n\nNothing is invented."
    assert read_verdict(explained).hallucinated is False and compat_verdict(explained) == 1.0
    assert read_verdict('{"hallucinated": 1, "spans": ["x"], "why": "y"}') == (True, ("x",), "y", "")
    assert read_verdict('```json\n{"hallucinated": "0"}\n```').hallucinated is False
    assert read_verdict("Score: 1\nspan\nwhy").hallucinated is True
    for text in ("I cannot tell.", "", '{"hallucinated": 0.5}', "2\nx\ny", "10", "-1"):
        assert read_verdict(text).hallucinated is None and read_verdict(text).unread
    assert compat_verdict("0.5\nspan\nwhy") == 0.5 and compat_verdict("I cannot tell.") == 1.0
    assert compat_verdict("") is None and compat_verdict("The score is 0.") == 0.0
    with pytest.raises(ValueError, match="could not convert"):
        compat_verdict("Score: 0\nspan\nwhy")


@pytest.mark.parametrize(
    "text, score", [('{"score": 7.5}', 7.5), ("Score: 8\nGood.", 8.0), ("10", 10.0), ("**7/10**", 7.0), ("11", None), ("0", None),
                    ("good", None), ("3 reasons make this a 9.", None), ("5 of the claims are wrong. Score: 2", None),
                    ("-3", None), ('{"score": 12}', None)],
)  # fmt: skip
def test_helpfulness(text, score):
    """A number that begins a sentence is no grade; what is none has a reason, to be counted."""
    found = parsers.read_helpfulness(text)
    assert found.score == score and found.unread.startswith("helpfulness: " if score is None else "")
    assert bool(found.unread) == (score is None)


def test_helpfulness_as_published():
    found = [parsers.compat_helpfulness(text) for text in ("12\nx", "-1", "nan", "Score: 3")]
    assert found == [(10.0, ""), (0.0, ""), (None, "helpfulness: no number"), (None, "helpfulness: no number")]


def test_replies_in_the_published_form_are_asked_for_and_read():
    """Every demonstration, and a question, written in either form, is read again by the parser of that form."""
    test = {
        "question": "Which?",
        "options": ["red", "blue", "green", "pink"],
        "analysis": "The note says so.",
        "answer": "B",
    }
    item = ExamItem("Which?", ("red", "blue", "green", "pink"), "B", "The note says so.")
    for compat in (False, True):
        for _, reply in prompts.NEED_SHOWN:
            found = (compat_need if compat else read_need)(prompts.written("need", reply, compat))
            assert (found.label, list(found.queries)) == (reply["label"], reply["queries"])
        said = prompts.written("exam", {"tests": [test, test]}, compat)
        assert (compat_exam(said) if compat else read_exam(said, Counter())) == [item, item]
        for _, reply in prompts.JUDGE_SHOWN:
            said = prompts.written("judge", reply, compat)
            assert (compat_verdict(said) if compat else read_verdict(said).hallucinated) == reply["hallucinated"]
        for _, reply in prompts.HELPFUL_SHOWN:
            said = prompts.written("helpfulness", reply, compat)
            assert (parsers.compat_helpfulness if compat else parsers.read_helpfulness)(said).score == reply["score"]
    asked = prompts.need_question("ask", compat=True).messages
    assert "Prediction: <need> or <no need>" in asked[0].content and asked[1].content.startswith("Analysis: ")
    assert "JSON" in prompts.exam_question("a note", 3).messages[0].content


def test_prompts_hold_texts_between_marks():
    """A helper made of rules finds each text, and tells the five questions apart."""
    need = Need(NEED, "why >>>", ("q1", "q2"))
    asked = {
        "need": prompts.need_question("ask <<<me>>>"), "exam": prompts.exam_question("a note", 3),
        "knowledge": prompts.knowledge_question("ask", "said", need), "helpfulness": prompts.helpfulness_question("q", "a"),
        "judge": prompts.judge_question("q", need, "a note", "an answer"),
    }  # fmt: skip
    assert {name: prompts.task_of(one) for name, one in asked.items()} == {name: name for name in asked}
    assert prompts.block(asked["need"].messages[-1].content, "Request") == "ask < < <me> > >"
    told = asked["knowledge"].messages[-1].content
    assert prompts.block(told, "Reference answer") == "said" and prompts.block(told, "Topics") == "q1; q2"
    hidden = prompts.knowledge_question("ask", "said", need, response_shown=False).messages[-1].content
    assert prompts.block(hidden, "Reference answer") is None
    assert prompts.block(asked["judge"].messages[-1].content, "Answer") == "an answer"
    assert [m.role for m in asked["judge"].messages] == ["user", "assistant"] * 2 + ["user"]
    for shown, reply in prompts.NEED_SHOWN:
        assert read_need(json.dumps(reply)).label == reply["label"] and shown
