"""What FuseChat-3.0 (arXiv 2503.04222) trains on: the best response to a prompt, and pairs within one source.

Section 3.1 of its specification, which settles what the paper leaves open. A response is a record with "prompt_id",
"source_model", "response" and "reward"; "passed", if it is there, says whether a checker found it right.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusion_jax.jsonl import Record
from fusion_jax.rewards.select import by_prompt, source_names, usable
from fusion_jax.settings import bounded, seeded

Chosen = tuple[Record, Record]  # (chosen, rejected)


@dataclass(frozen=True)
class PairRules:
    """Which pairs are kept."""

    least_gap: float = 0.01
    """Rewards that lie closer together give no pair."""
    most_gap: float = 0.1
    """Rewards that lie further apart give no pair."""
    keep: Literal["highest", "largest-gap", "random", "all"] = "highest"
    """Which source's pair of a prompt stays: that of the best chosen response, that of the largest gap, any, or all."""
    seed: int = 0
    """Decides where `keep` is random."""

    def __post_init__(self) -> None:
        bounded(self, "least_gap", least=0)
        bounded(self, "most_gap", least=self.least_gap)
        seeded(self, "seed")


def best_passed(responses: Sequence[Record], dropped: Counter[str]) -> dict[str, Record]:
    """The response of the highest reward to each prompt, of those that passed where they were checked.

    Ties go to the earlier response. A prompt none of whose responses passed is counted in `dropped`.
    """
    out = {}
    for prompt, records in by_prompt(usable(responses, dropped)).items():
        passed = [r for r in records if r.get("passed") is not False]
        if passed:
            out[prompt] = max(passed, key=lambda r: r["reward"])
        else:
            dropped["prompt: no response passed"] += 1
    return out


def pairs_within_source(responses: Sequence[Record], rules: PairRules, dropped: Counter[str]) -> list[Chosen]:
    """(chosen, rejected) of one source each, in the order of the prompts; one pair a prompt unless all are kept.

    Of a source's responses to a prompt, the chosen one has the highest reward of those that passed, the rejected one
    the lowest of those that failed; without a checker, of all. Ties go to the earlier response.

    Args:
      dropped: counts, by reason, sources of a prompt that give no pair, and prompts that have none.
    """
    order = source_names(responses)
    out = []
    for prompt, records in by_prompt(usable(responses, dropped)).items():
        found = []
        for source in order:
            own = [r for r in records if r["source_model"] == source]
            if own and (pair := _pair(own, rules, dropped)):
                found.append(pair)
        if not found:
            dropped["prompt: no pair"] += 1
        out += _kept(prompt, found, rules)
    return out


def released_sft(record: Record) -> Record:
    """A response in the form of the released SFT data."""
    turns = [{"from": "human", "value": record["prompt"]}, {"from": "gpt", "value": record["response"]}]
    return {**_origin(record), "conversations": turns, "reward": record["reward"]}


def released_pair(chosen: Record, rejected: Record) -> Record:
    """A pair in the form of the released preference data."""
    messages = {
        "prompt": [{"role": "user", "content": chosen["prompt"]}],
        "chosen": [{"role": "assistant", "content": chosen["response"]}],
        "rejected": [{"role": "assistant", "content": rejected["response"]}],
    }
    return {**_origin(chosen), **messages, "rewards": [chosen["reward"], rejected["reward"]]}


def _origin(record: Record) -> Record:
    known = {name: record[name] for name in ("dataset", "domain") if record.get(name)}
    return {"prompt_id": record["prompt_id"], **known, "source_model": record["source_model"]}


def _pair(own: Sequence[Record], rules: PairRules, dropped: Counter[str]) -> Chosen | None:
    checked = [r for r in own if r.get("passed") is not None]
    good = [r for r in own if r.get("passed") is not False]
    bad = [r for r in checked if not r["passed"]] if checked else list(own)
    if not good or not bad:
        dropped["source: no response passed" if not good else "source: every response passed"] += 1
        return None
    chosen, rejected = max(good, key=lambda r: r["reward"]), min(bad, key=lambda r: r["reward"])
    gap = chosen["reward"] - rejected["reward"]
    if chosen["response"].strip() == rejected["response"].strip():
        alike = gap != 0 or len({r["response"].strip() for r in own}) == 1
        dropped["source: identical responses" if alike else "source: equal rewards"] += 1
    elif gap < rules.least_gap:
        dropped["source: gap too small"] += 1
    elif gap > rules.most_gap:
        dropped["source: gap too large"] += 1
    else:
        return chosen, rejected
    return None


def _kept(prompt: str, pairs: list[Chosen], rules: PairRules) -> list[Chosen]:
    """The pairs of a prompt that stay; the choice at random depends on the seed and the prompt alone."""
    if rules.keep == "all" or len(pairs) < 2:
        return pairs
    if rules.keep == "random":
        return [random.Random(f"{rules.seed} {prompt}").choice(pairs)]
    if rules.keep == "largest-gap":
        return [max(pairs, key=lambda pair: pair[0]["reward"] - pair[1]["reward"])]
    return [max(pairs, key=lambda pair: pair[0]["reward"])]
