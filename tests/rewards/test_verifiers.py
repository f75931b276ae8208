"""Verifiers: the answers people write, and agreement with labels of real solutions where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.verifiers import VERIFIERS, contains, exact, final_number, graded, gsm8k, gsm8k_format, verifier

SOLUTIONS = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_model_solutions.jsonl"
REFERENCE = "He pays 3 * 400 = <<3*400=1200>>1200 dollars.\n#### 1,200"


@pytest.mark.parametrize(
    "response",
    [
        "3 * 400 = 1200\n#### 1200", "A: 1,200", "The answer is $1200.", "the answer is: 1200.00", "Answer: **1,200**",
        "So he pays $1,200.00", "about 300 first, in the end 1200", "\\boxed{1200}", "The answer is 3. No: #### 1200",
        "It is 1200%", "from 7-1200", "answer is 2400/2",
    ],
)  # fmt: skip
def test_right_final_numbers(response):
    assert gsm8k(response, REFERENCE) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no idea",
        "#### 120",
        "#### -1200",
        "A: 1200.5",
        "1200, no: 1300",
        "1,2,00",
        "#### 12e2",
        "The answer is 0/0",
    ],
)
def test_wrong_final_numbers(response):
    assert gsm8k(response, REFERENCE) == 0.0


@pytest.mark.parametrize(
    "text, value",
    [
        ("= -5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("16-3", 3),
        (".5 left", 0.5),
        ("1,2,3", 3),
        ("x", None),
        ("7" * 5000, None),
    ],
)
def test_numbers_in_text(text, value):
    assert final_number(text) == value


def test_agreement_with_the_labels_of_real_solutions():
    """900 problems, solutions by four models: the verdict equals the label on every one."""
    if not SOLUTIONS.exists():
        pytest.skip("the real solutions are not here")
    checked = 0
    for line in SOLUTIONS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for solution in (v for v in record.values() if isinstance(v, dict)):
            assert bool(gsm8k(solution["solution"], record["ground_truth"])) == solution["is_correct"], solution
            checked += 1
    assert checked == 3600


def test_other_verifiers():
    assert exact(" Paris. ", "paris") == 1.0 and exact("Paris, France", "Paris") == 0.0
    assert contains("It is New  York!", "new york") == 1.0 and contains("112", "12") == 0.0 and contains("x", "") == 0.0
    assert graded("The answer is a b c.", "a b c") == 1.0
    near, far = graded("Answer: a b d", "a b c"), graded("Answer: x y z", "a b c")
    assert 1 > near > far >= 0
    assert [gsm8k_format(r, REFERENCE) for r in ("#### 1200", "#### 7", "7 or so")] == [1.0, 0.1, 0.0]


def test_chosen_by_name():
    assert all(verifier(name) is function for name, function in VERIFIERS.items())
    with pytest.raises(InputError, match=r"no verifier is called 'gsm8'\. Did you mean 'gsm8k'"):
        verifier("gsm8")
