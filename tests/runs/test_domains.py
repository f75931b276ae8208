"""Shares by domain, and the table of the data stage, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_jax.errors import InputError
from fusion_jax.runs.domains import data_table, domain_of, shares_of, split_prompts

PROMPTS = [{"prompt_id": f"{d}{i}", "domain": d} for d, n in (("chat", 10), ("math", 20), ("zh", 5)) for i in range(n)]


def test_every_domain_has_its_share():
    parts = split_prompts(PROMPTS, 0.4, {"math": 0.75, "zh": 1.0}, 3)
    counts = [[sum(domain_of(p) == d for p in part) for d in ("chat", "math", "zh")] for part in parts]
    assert counts == [[4, 15, 5], [6, 5, 0]]
    assert sorted(p["prompt_id"] for p in parts[0] + parts[1]) == sorted(p["prompt_id"] for p in PROMPTS)


@pytest.mark.parametrize("text", ["math", "math=", "math=1.5", "=0.5", "math=x"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(InputError, match="is no share of a domain"):
        shares_of([text])
    with pytest.raises(InputError, match="stands twice"):
        shares_of(["a=0.1", "a=0.2"])


def test_an_unknown_domain_is_refused():
    with pytest.raises(InputError, match=r"no prompt is of the domain 'maths'.*Known: chat, math, zh"):
        split_prompts(PROMPTS, 0.4, {"maths": 0.5}, 3)


def test_the_table():
    def say(prompt: str, source: str, reward: float, passed: bool | None) -> dict[str, Any]:
        return {
            "prompt_id": prompt,
            "prompt": prompt,
            "dataset": "d",
            "source_model": source,
            "reward": reward,
            "passed": passed,
        }

    responses = [say("p", "a", 0.0, False), say("p", "a", 1.0, True), say("p", "b", 0.5, None)]
    title, table = data_table(responses, {"p": responses[1]}, [{"prompt_id": "p", "source_model": "a"}])
    assert "| d | a | 2 | 0.500 | 0.500 ± 0.500 | 1 | 1 |" in table
    assert "| d | b | 1 | not checked | 0.500 ± 0.000 | 0 | 0 |" in table
