"""Weights of sources and responses from their rewards (FuseRL, section B of its specification).

Shapes: K sources, J samples of each. Everything is computed once, on the host, when the records are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusion_jax.jsonl import Record
from fusion_jax.rewards.select import by_prompt, usable
from fusion_jax.settings import bounded

Select = Literal["top_k", "best_per_source"]


def softmax(rewards: np.ndarray, temperature: float) -> np.ndarray:
    """float64[...], exp(r / t) divided by its sum over the last axis; 0 where a reward is -inf."""
    scaled = np.asarray(rewards, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def selected(rewards: np.ndarray, texts: list[list[str]], *, select: Select = "top_k", count: int = 4) -> list[int]:
    """Places source * J + sample of the responses that FuseSFT learns from.

    The best `count` of all sources, or the best of each source. Of equal texts the first stays; ties go to the smaller
    place; fewer are taken where fewer exist.
    """
    flat, samples = np.asarray(rewards, np.float64).ravel(), np.shape(rewards)[1]
    words = [text for row in texts for text in row]
    if select == "best_per_source":
        found = [k * samples + int(np.argmax(row)) for k, row in enumerate(np.asarray(rewards))]
    else:
        found = np.argsort(-flat, kind="stable").tolist()
    seen: dict[str, int] = {}
    for place in found:
        seen.setdefault(words[place], place)
    kept = list(seen.values())
    return kept if select == "best_per_source" else kept[:count]


def source_weights(rewards: np.ndarray, temperature: float, *, min_gap: float = 0.0) -> np.ndarray:
    """float64[K], softmax of each source's best reward.

    A source whose best and worst sample lie within `min_gap` has weight 0; all have it where no source is left.
    """
    rewards = np.asarray(rewards, np.float64)
    apart = rewards.max(-1) - rewards.min(-1) > min_gap
    if not apart.any():
        return np.zeros(len(rewards))
    return softmax(np.where(apart, rewards.max(-1), -np.inf), temperature)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """float64[...,J], each sample's reward less the mean of the others'; they sum to 0."""
    rewards = np.asarray(rewards, np.float64)
    count = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdims=True)) * count / (count - 1)


@dataclass(frozen=True)
class WeightRules:
    """Which responses count, and how much."""

    select: Select = "top_k"
    """What FuseSFT learns from: the best `count` responses of all sources, or the best of each source."""
    count: int = 4
    """Responses to a prompt of FuseSFT with top_k."""
    temperature: float = 0.02
    """Divides rewards before the softmax that makes weights of them: such that 2 or 3 responses share the weight."""
    min_gap: float = 0.0
    """A source whose best and worst response lie within this gives no preference."""

    def __post_init__(self) -> None:
        bounded(self, "count", least=1)
        bounded(self, "temperature", above=0)
        bounded(self, "min_gap", least=0)


def weighted_responses(responses: Sequence[Record], rules: WeightRules, dropped: Counter[str]) -> list[Record]:
    """What FuseSFT learns from: of each prompt the selected responses with weights that sum to 1."""
    out = []
    for prompt, records in by_prompt(usable(responses, dropped)).items():
        own = list(_by_source(records).values())
        rewards, texts = _grid(own)
        places = selected(rewards, texts, select=rules.select, count=rules.count)
        chosen = [own[place // rewards.shape[1]][place % rewards.shape[1]] for place in places]
        dropped["response: of equal texts"] += len(records) - len({r["response"] for r in records})
        out.append(
            {
                "prompt_id": prompt,
                "prompt": records[0]["prompt"],
                "responses": [r["response"] for r in chosen],
                "source_models": [r["source_model"] for r in chosen],
                "rewards": [r["reward"] for r in chosen],
                "weights": softmax(np.asarray([r["reward"] for r in chosen]), rules.temperature).tolist(),
            }
        )
    return out


def weighted_sources(
    responses: Sequence[Record], sources: Sequence[str], rules: WeightRules, dropped: Counter[str], *, samples: int = 0
) -> list[Record]:
    """What FusePO learns from: of each prompt a list with an entry for each source that gives a preference.

    An entry has the source's weight, and its best and worst response in this order or, where `samples` are asked for,
    all of its so many responses with their advantages. A prompt without any is counted in `dropped`.
    """
    out = []
    for prompt, records in by_prompt(usable(responses, dropped)).items():
        by_source = _by_source(records)
        least = samples or 2
        names = [name for name in sources if len(by_source.get(name, ())) >= least]
        dropped["source: too few responses"] += len(sources) - len(names)
        own = [by_source[name][:samples] if samples else by_source[name] for name in names]
        weights = source_weights(_grid(own)[0], rules.temperature, min_gap=rules.min_gap) if own else np.zeros(0)
        dropped["source: equally good responses"] += int((weights == 0).sum())
        entries = [
            {"source_model": name, "weight": weight, **_compared(mine, bool(samples))}
            for name, mine, weight in zip(names, own, weights.tolist())
            if weight > 0
        ]
        same = [e for e in entries if not samples and e["responses"][0].strip() == e["responses"][1].strip()]
        if same:
            dropped["source: identical responses"] += len(same)
            entries = _reweighted([e for e in entries if e not in same])
        if entries:
            out.append({"prompt_id": prompt, "prompt": records[0]["prompt"], "sources": entries})
        else:
            dropped["prompt: no source gives a preference"] += 1
    return out


def _reweighted(entries: list[Record]) -> list[Record]:
    total = sum(e["weight"] for e in entries)
    return [{**e, "weight": e["weight"] / total} for e in entries]


def _by_source(records: Sequence[Record]) -> dict[str, list[Record]]:
    out: dict[str, list[Record]] = {}
    for record in records:
        out.setdefault(record["source_model"], []).append(record)
    return out


def _grid(own: Sequence[Sequence[Record]]) -> tuple[np.ndarray, list[list[str]]]:
    """Rewards float64[K,J] and texts [K][J]; a source with fewer responses has its first one again, which changes
    neither its best nor its worst one, and counts once among equal texts."""
    most = max(map(len, own))
    filled = [[*records, *[records[0]] * (most - len(records))] for records in own]
    rewards = np.asarray([[r["reward"] for r in records] for records in filled], np.float64)
    return rewards, [[r["response"] for r in records] for records in filled]


def _compared(records: Sequence[Record], every: bool) -> Record:
    rewards = np.asarray([r["reward"] for r in records], np.float64)
    if every:
        return {"responses": [r["response"] for r in records], "advantages": advantages(rewards).tolist()}
    return {"responses": [records[i]["response"] for i in (int(rewards.argmax()), int(rewards.argmin()))]}
