"""Whether responses are right, by a checker: the final answer, or the tests of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fusion_jax.hosts.agree import agreed, on_first
from fusion_jax.jsonl import Record
from fusion_jax.rewards.code_tests import CodeLimits, all_pass


def checked(
    responses: Sequence[Record], rule: Callable[[str, str], float] | None, limits: CodeLimits | None
) -> list[Record]:
    """The responses with "passed" where a checker looks at them; what a record says of itself stays.

    Args:
      rule: (response, answer) -> 1 for a right response, of prompts with "answer" and without tests that are run.
      limits: of the programs that run the code of responses to prompts with "tests"; None runs none.

    Raises:
      InputError: a system that cannot shut off a program's network.
    """
    new = [i for i, r in enumerate(responses) if r.get("passed") is None]
    tested = [i for i in new if responses[i].get("tests")] if limits is not None else []
    passed = _run([responses[i] for i in tested], limits) if limits is not None and tested else []
    found = dict(zip(tested, passed, strict=True))
    if rule is not None:
        answered = [i for i in new if i not in found and isinstance(responses[i].get("answer"), str)]
        found |= {i: rule(responses[i]["response"], responses[i]["answer"]) >= 1 for i in answered}
    return [{**r, "passed": found[i]} if i in found else r for i, r in enumerate(responses)]


def _run(responses: Sequence[Record], limits: CodeLimits) -> list[bool]:
    """Whether the code of each passes, as the first host finds: a program near its limits may end on either side."""
    found = list[bool]()
    codes, tests = ([r[name] for r in responses] for name in ("response", "tests"))
    on_first(lambda: found.extend(all_pass(codes, tests, limits)))
    return [bool(x) for x in agreed(np.asarray(found or [False] * len(responses)))]
