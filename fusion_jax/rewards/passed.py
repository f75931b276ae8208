"""Whether responses are right, by a checker: the final answer, or the tests of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record, numbered
from fusion_jax.rewards.code_tests import CodeLimits, all_pass


def checked(
    responses: Sequence[Record], rule: Callable[[str, str], float] | None, limits: CodeLimits | None
) -> list[Record]:
    """The responses with "passed" where a checker looks at them; what a record says of itself stays.

    Args:
      rule: (response, answer) -> 1 for a right response, of prompts with "answer" and without tests that are run.
      limits: of the programs that run the code of responses to prompts with "tests"; None runs none.

    Raises:
      InputError: tests that are no text, or a system that cannot shut off a program's network.
    """
    tested = [] if limits is None else [i for i, r in enumerate(responses) if _has_tests(r) and _unknown(r)]
    for number, record in numbered(responses):
        if limits is not None and "tests" in record and not _has_tests(record):
            problem = "is no text of Python statements"
            raise InputError(problem, record=number, field="tests", cure="Write the tests, or leave the field out")
    passed: dict[int, bool] = {}
    if limits is not None and tested:
        some = [responses[i] for i in tested]
        found = all_pass([r["response"] for r in some], [r["tests"] for r in some], limits)
        passed = dict(zip(tested, found, strict=True))
    out = []
    for place, record in enumerate(responses):
        if place in passed:
            record = {**record, "passed": passed[place]}
        elif rule is not None and _unknown(record) and isinstance(record.get("answer"), str):
            record = {**record, "passed": rule(record["response"], record["answer"]) >= 1}
        out.append(record)
    return out


def _unknown(record: Record) -> bool:
    return record.get("passed") is None


def _has_tests(record: Record) -> bool:
    return isinstance(record.get("tests"), str) and bool(record["tests"].strip())
