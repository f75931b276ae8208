"""Verifiers: the answers people write, and agreement with labels of real solutions where they are at hand."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.verifiers import (
    VERIFIERS,
    contains,
    exact,
    final_number,
    graded,
    gsm8k,
    gsm8k_format,
    gsm8k_strict,
    verifier,
)

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


RIGHT = [
    ('The answer is 12 x 3 = 36', '36'),
    ('The answer is 36.', '36'),
    ('The answer is 36 = 12 x 3', '36'),
    ('The answer is 12 * 3', '36'),
    ('The answer is 40 - 4 apples', '36'),
    ('so \\boxed{36}', '36'),
    ('\\boxed{\\frac{1}{2}}', '1/2'),
    ('\\boxed{\\frac{1}{2}}', '0.5'),
    ('\\boxed{1,234}', '1234'),
    ('\\boxed{1{,}234}', '1234'),
    ('\\boxed{1\\,234}', '1234'),
    ('\\boxed{\\$1,234.00}', '1234'),
    ('\\boxed{36 \\text{ dollars}}', '36'),
    ('\\boxed{\\text{36 apples}}', '36'),
    ('\\boxed{36\\%}', '36'),
    ('\\boxed{x = 36}', '36'),
    ('\\boxed{2\\frac{1}{2}}', '2.5'),
    ('\\boxed{12 \\times 3 = 36}', '36'),
    ('\\boxed{\\dfrac{72}{2}}', '36'),
    ('The answer is \u22125', '-5'),
    ('#### \u22125', '-5'),
    ('It changed by \u22125', '-5'),
    ('#### 36', '36'),
    ('####36', '36'),
    ('#### $1,234.00', '1234'),
    ('#### 36 dollars', '36'),
    ('#### 36.', '36'),
    ('#### Step 1: 4 boxes\nEach has 9.\n#### Final answer\n36', '36'),
    ('The answer is 36.\n\n#### Check 12 boxes\n12 * 3 = 36', '36'),
    ('#### 1. Find the cost\nIt is 12.\n#### 2. Multiply\nThe answer is 36', '36'),
    ('#### Answer: 36', '36'),
    ('**Answer:** 36', '36'),
    ('**Final Answer**\n\n36 apples', '36'),
    ('Answer: **36**', '36'),
    ('Answer: $36', '36'),
    ('**The answer is $36.00**.', '36'),
    ('The final answer is: $\\boxed{36}$. I hope it is correct.', '36'),
    ('\\boxed{35} wait, no. \\boxed{36}', '36'),
    ('#### 35\nNo.\n#### 36', '36'),
    ('The answer is 36%.', '36'),
    ('The answer is 0.5', '1/2'),
    ('The answer is 1/2.', '0.5'),
    ('The answer is 2 1/2 hours', '2.5'),
    ('The answer is 2\xbd', '2.5'),
    ('The answer is $1.5 million', '1500000'),
    ('The answer is -$5', '-5'),
    ('The answer is negative 5', '-5'),
    ('The answer is not 40, it is 36', '36'),
    ('The answer is 36 because 12 x 3 = 36', '36'),
    ('The answer is 36 since there are 3 boxes of 12', '36'),
    ('The answer is 36 (12 x 3)', '36'),
    ('The answer is 12 boxes x 3 pens = 36 pens', '36'),
    ('The answer is 12 x 3, which is 36', '36'),
    ('The answer to the question is 36', '36'),
    ('the correct answer should be 36', '36'),
    ('A: 36', '36'),
    ('Answer = 36', '36'),
    ('The answer is (10 + 2) x 3 = 36', '36'),
    ('The answer is (10 + 2) x 3', '36'),
    ('So 12 x 3 = 36 pens', '36'),
    ('\\[ 12 \\times 3 = 36 \\]', '36'),
    ('The answer is \uff13\uff16', '36'),
    ('Answer:\n- 36 apples', '36'),
    ('The answer is $36$.', '36'),
    ('The answer is \\(36\\).', '36'),
    ('She pays 1\u202f234', '1234'),
    ('The answer is 36. Final answer: see above.', '36'),
    ('#### 12*3=<<12*3=36>>36', '36'),
    ('**36**', '36'),
    ('= $36', '36'),
    ('The answer is: 1200.00', '1200'),
    ('the answer is 6^2', '36'),
    ('The answer is 60 minutes, which is 1 hour.', '60'),
    ('The answer is 18, which is more than 15.', '18'),
    ('the answer is 100, which is 40 more than 60', '100'),
    ('The answer is 24, that is 2 dozen.', '24'),
    ('#### 18 (which is 2 x 9)', '18'),
    ('It takes 2 1/2', '2.5'),
    ('The answer is 12-5 = 7', '7'),
]  # fmt: skip
WRONG = [
    ('The answer is 12 x 3 = 36', '12'),
    ('The answer is 36 x 2 = 72', '36'),
    ('The answer is not 36, it is 40', '36'),
    ('The answer is 36 million', '36'),
    ('The answer is 3:30', '3'),
    ('#### 12e2', '12'),
    ('The answer is 36 or 40', '36'),
    ('The answer is 36 or 40', '40'),
    ('The answer is between 30 and 40', '30'),
    ('\\boxed{\\frac{1}{2}}', '1'),
    ('\\boxed{\\frac{1}{2}}', '2'),
    ('\\boxed{1,234}', '1'),
    ('\\boxed{1{,}234}', '234'),
    ('\\boxed{36}\nNo. \\boxed{35}', '36'),
    ('#### 36\n#### 35', '36'),
    ('\u22125', '5'),
    ('The answer is \u22125', '5'),
    ('#### -36', '36'),
    ('36.5', '36'),
    ('The answer is 36.5', '36'),
    ('The answer is 1/36', '36'),
    ('The answer is 40 - 4', '40'),
    ('#### 2. Compute\nThe answer is 36', '2'),
    ('no idea', '36'),
    ('', '36'),
    ('The answer is 5 to 6', '5'),
    ('\\boxed{36^2}', '36'),
    ('\\boxed{2\\frac{1}{2}}', '2'),
    ('The answer is 2\xbd', '2'),
    ('The answer is 1, 2, 3', '1'),
    ('#### 1.200', '1200'),
    ('36', 'no number'),
    ('The answer is 3 hours and 30 minutes', '3'),
    ('The answer is 18, which is more than 15.', '15'),
    ('The answer is 2-3 days', '-1'),
    ('The answer is 2-3 days', '3'),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_right_answers_as_models_write_them(response, answer):
    assert gsm8k(response, f"#### {answer}") == 1.0


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_wrong_answers_that_hold_the_right_number(response, answer):
    assert gsm8k(response, f"#### {answer}") == 0.0


def test_the_published_rule_under_its_name():
    """The first "#### number" of both, as text without commas: nothing else counts."""
    assert gsm8k_strict("so\n#### 1,200", REFERENCE) == 1.0 and verifier("gsm8k_strict") is gsm8k_strict
    assert [gsm8k_strict(r, REFERENCE) for r in ("The answer is 1200", "#### 1200.0", "#### 7\n#### 1200")] == [0.0] * 3


@pytest.mark.parametrize(
    "text",
    [
        "answer is " * 10**6,
        "\\boxed{" * 10**6,
        "the answer is " + "(" * 900 + "1",
        "1," * 10**6,
        "2^" * 10**5,
        "####" * 10**6,
        "\n" * 10**6,
        " \n#" * 10**5,
    ],
)
def test_long_and_nested_texts_take_no_time(text):
    began = time.process_time()
    final_number(text)
    assert time.process_time() - began < 2


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
