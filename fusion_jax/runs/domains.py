"""Prompts of several domains: their own shares for SFT, and what the data stage made of each of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from fusion_jax.data.order import split
from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.rewards.select import by_prompt, source_names


def shares_of(texts: Sequence[str], field: str = "--sft-shares") -> dict[str, float]:
    """Shares by domain of NAME=SHARE.

    Raises:
      InputError: another form, a share out of [0, 1], a domain that stands twice.

    >>> shares_of(["math=0.78", "zh=1"])
    {'math': 0.78, 'zh': 1.0}
    """
    out: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or not 0 <= share <= 1 or name in out:
            problem = f"{quoted(text)} {'stands twice' if name in out else 'is no share of a domain'}"
            raise InputError(problem, field=field, cure="Write math=0.78: a domain once, with a share from 0 to 1")
        out[name] = share
    return out


def domain_of(record: Record) -> str:
    """The domain of a prompt or a response: its "domain", "dataset" or "skill", the first that is there."""
    return str(next((record[name] for name in ("domain", "dataset", "skill") if record.get(name)), "all"))


def split_prompts(
    prompts: Sequence[Record], share: float, shares: Mapping[str, float], seed: int
) -> tuple[list[Record], list[Record]]:
    """Prompts for SFT and for preferences: a share of all, or shares of their own of some domains.

    Raises:
      InputError: no prompt is of such a domain.
    """
    if not shares:
        return split(prompts, share, seed)
    domains, first = [domain_of(prompt) for prompt in prompts], set[str]()
    for name in shares:
        if name not in domains:
            known = ", ".join(sorted(set(domains)))
            raise InputError(f"no prompt is of the domain {quoted(name)}", field="--sft-shares", cure=f"Known: {known}")
    for domain in dict.fromkeys(domains):
        own = [p["prompt_id"] for p, d in zip(prompts, domains, strict=True) if d == domain]
        first.update(split(own, shares.get(domain, share), seed)[0])
    return [p for p in prompts if p["prompt_id"] in first], [p for p in prompts if p["prompt_id"] not in first]


def data_table(responses: Sequence[Record], best: Mapping[str, Record], pairs: Sequence[Record]) -> list[str]:
    """A line of each domain and source for the report: responses, share that passed, rewards, prompts for SFT whose
    response it wrote, pairs."""
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in responses:
        cells[domain_of(record), record["source_model"]].append(record)
    domains = {prompt: domain_of(records[0]) for prompt, records in by_prompt(responses).items()}
    wins, kept = defaultdict[tuple[str, str], int](int), defaultdict[tuple[str, str], int](int)
    for prompt, record in best.items():
        wins[domains[prompt], record["source_model"]] += 1
    for pair in pairs:
        kept[domains[pair["prompt_id"]], pair["source_model"]] += 1
    lines = []
    for domain in sorted(set(domains.values())):
        for source in source_names(responses):
            own = cells.get((domain, source), [])
            if own:
                lines.append(_line(domain, source, own, wins[domain, source], kept[domain, source]))
    return ["## Data by domain and source", markdown_table(lines)] if lines else []


def _line(domain: str, source: str, own: Sequence[Record], wins: int, pairs: int) -> dict[str, str]:
    rewards = np.asarray([r["reward"] for r in own if r["reward"] is not None], float)
    seen = [r["passed"] for r in own if r.get("passed") is not None]
    passed = f"{sum(seen) / len(seen):.3f}" if seen else "not checked"
    spread = f"{rewards.mean():.3f} ± {rewards.std():.3f}" if len(rewards) else ""
    return {
        "domain": domain,
        "source": source,
        "responses": str(len(own)),
        "passed": passed,
        "reward, mean ± deviation": spread,
        "SFT prompts": str(wins),
        "pairs": str(pairs),
    }
