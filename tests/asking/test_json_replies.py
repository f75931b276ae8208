"""Objects out of replies: what is tolerated, what is refused and why."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import pytest

from fusion_jax.asking.json_replies import LONGEST, Unread, read_json_object, read_object, without_last_commas
from fusion_jax.settings import bounded


@dataclass(frozen=True)
class Part:
    text: str


@dataclass(frozen=True)
class Verdict:
    better: Literal["m", "M"]
    score: float
    count: int = 1
    sure: bool = False
    parts: tuple[Part, ...] = ()
    why: str | None = None

    def __post_init__(self) -> None:
        bounded(self, "score", least=0, most=10)


@pytest.mark.parametrize("text", [
    '{"better": "M", "score": 3}', 'Sure!\n```json\n{"better": "M", "score": 3}\n```\nDone.', '```\n{"better": "M", "score": 3,}\n```',
    'My answer is {"better": "M", "score": 3.0} as {said}.', 'Of {x: 1} and {y} I choose {"better": "M", "score": 3}', '{"better":"M","score":3,"parts":[],"why":null , }',
    '<think>It could be {"better": "m", "score": 0}</think>\n{"better": "M", "score": 3, "why": null}', 'Take {x | x > 0, then {"better": "M", "score": 3}',
    '{"better": "m", "score": 0} was my first thought, {"better": "M", "score": 3} is the last', '{"better": "M", "score": 3} {"note": 1}', '{"better": "M", {"better": "M", "score": 3}',
    "\\frac{a}{b}" * 40 + ' {"better": "M", "score": 3}',
])  # fmt: skip
def test_what_is_tolerated(text):
    assert read_object(text, Verdict) == Verdict("M", 3.0)


def test_nested_values_and_braces_in_texts():
    text = 'x {"better": "m", "score": 1.5, "count": 2, "sure": true, "parts": [{"text": "a } \\" {"}, {"text": ",]"},], "why": "{"}'
    assert read_object(text, Verdict) == Verdict("m", 1.5, 2, True, (Part('a } " {'), Part(",]")), "{")


@pytest.mark.parametrize("text, reason", [
    ("M is better", "no JSON object"), ("", "no JSON object"), ('["M"]', "no JSON object"), ('{"better": "M", "score": 3', "broken JSON"), ("{better: 1}", "broken JSON"),
    ('{"better": "M", "better": "m", "score": 1}', "broken JSON"), ('{"better": "M", "score": NaN}', "broken JSON"), ('{"a":' * 3000 + "1" + "}" * 3000, "broken JSON"),
    ('{"score": 1}', "field 'better' is missing"), ('{"better": "x", "score": 1}', "field 'better' is none of [\"m\", \"M\"]"), ('{"better": "M", "score": "3"}', "field 'score' is no float"),
    ('{"better": "M", "score": true}', "field 'score' is no float"), ('{"better": "M", "score": 1, "count": 1.0}', "field 'count' is no int"), ('{"better": "M", "score": 1, "count": true}', "field 'count' is no int"),
    ('{"better": "M", "score": 1, "sure": 1}', "field 'sure' is no bool"), ('{"better": "M", "score": 1, "parts": {"text": "a"}}', "field 'parts' is no list"), ('{"better": "M", "score": 1, "parts": ["a"]}', "field 'parts[]' is no object"),
    ('{"better": "M", "score": 1, "parts": [{"text": null}]}', "field 'parts[].text' is no str"), ('{"better": "M", "score": 1, "other": 2}', "unknown field"), ('{"better": "M", "score": 11}', "field 'score' out of range"),
    ('<think>I might say {"better": "M", "score": 3}', "thoughts that do not end"), ('{"better": "M", "parts": [{"better": "M", "score": 3', "broken JSON"),
    ("x" * (LONGEST + 1), "reply too long to read"),
])  # fmt: skip
def test_what_is_not(text, reason):
    found = read_object(text, Verdict)
    assert isinstance(found, Unread) and found.reason == reason


def test_other_fields_may_be_passed_over():
    assert read_object('{"better": "M", "score": 1, "other": 2}', Verdict, others=True) == Verdict("M", 1.0)


def test_reasons_are_counted():
    texts = ['{"better": "M", "score": 1}', "no", "none", '{"score": 1}']
    found = [read_object(text, Verdict) for text in texts]
    assert Counter(one.reason for one in found if isinstance(one, Unread)) == {
        "no JSON object": 2,
        "field 'better' is missing": 1,
    }


def test_commas_behind_last_entries():
    assert without_last_commas('{"a": [1,2 , ], "b,}": "x,]", }') == '{"a": [1,2  ], "b,}": "x,]" }'
    assert without_last_commas('["\\",}", ]') == '["\\",}" ]' and without_last_commas("[,]") == "[]"


def test_the_time_is_bounded():
    """Texts that are made to be scanned again and again."""
    begun = time.process_time()
    for text in (
        "{" * LONGEST,
        '{"' * (LONGEST // 2),
        "{}" * (LONGEST // 2),
        "{,}" * (LONGEST // 3),
        '"{' * (LONGEST // 2),
        '{"a":' * (LONGEST // 5),
        '{"\\"' * (LONGEST // 4),
        '{"a":1,}' * (LONGEST // 8),
        "{ " * (LONGEST // 2),
    ):
        read_json_object(text)
    assert time.process_time() - begun < 5.0
