"""Who is found right by which checker."""

from __future__ import annotations

import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.code_tests import CodeLimits
from fusion_jax.rewards.passed import checked
from fusion_jax.rewards.verifiers import verifier

RECORDS = [
    {"response": "The answer is 4.", "answer": "4"}, {"response": "5", "answer": "4"},
    {"response": "5", "answer": "4", "passed": True}, {"response": "hello"},
]  # fmt: skip


def test_final_answers():
    found = checked(RECORDS, verifier("answer"), None)
    assert [record.get("passed") for record in found] == [True, False, True, None]
    assert [record.get("passed") for record in checked(RECORDS, None, None)] == [None, None, True, None]


def test_code_is_run_where_it_is_asked_for(tmp_path):
    records = [
        {"response": "```python\ndef f(x):\n    return x + 1\n```", "tests": "assert f(1) == 2", "answer": "no"},
        {"response": "def f(x):\n    return x", "tests": "assert f(1) == 2", "answer": "no"},
        {"response": "while True: pass", "tests": "assert True"},
    ]
    try:
        found = checked(records, verifier("answer"), CodeLimits(seconds=1))
    except InputError as error:
        pytest.skip(str(error))
    assert [record.get("passed") for record in found] == [True, False, False]
    assert [record.get("passed") for record in checked(records, verifier("answer"), None)] == [False, False, None]
