"""Policy evolution of SEFT (arXiv 2406.10813): drafts of the policy, what the reviser makes of them, what is learnt."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.rewards.revision import p_keep
from fusion_jax.runs.reading import Asked
from fusion_jax.runs.revising import Reviser, completions, decide, revise
from fusion_jax.sampling.generate import SampleSettings, encoded_prompts
from fusion_jax.settings import bounded

Mode = Literal["internal", "external", "always"]
KEPT, REVISED, NOTHING = "kept", "revised", "no finished draft"
Judge = Callable[[Sequence[Record]], list[float | None]]
"""Rewards of records {"prompt", "response", "answer"?}; None where one cannot be judged."""


@dataclass(frozen=True)
class EvolutionSettings:
    """Rounds in which the policy learns what the reviser makes of its own drafts."""

    rounds: int = 3
    """Rounds, each with prompts of its own."""
    internal: int = 1
    """How many of them, the first ones, learn the policy's own best drafts alone."""
    round_prompts: int = 20_000
    """Prompts of a round."""
    on_policy: bool = True
    """Whether drafts are those of the policy as it is now, or of the target."""
    start_from: Literal["previous", "target"] = "previous"
    """What a round trains: the policy of the round before it, or the target, then on all pseudo-labels so far."""
    anchor: float = 0.1
    """Share of a round's records that are the target's own greedy answers to the first round's prompts."""
    anchor_keep: float = 0.9
    """Least p_keep of such an answer."""
    drafts: SampleSettings = SampleSettings(temperature=0.9, top_p=0.95, num_samples=4, max_new_tokens=1024)
    revisions: SampleSettings = SampleSettings(temperature=0.7, top_p=0.9, num_samples=1, max_new_tokens=1024)

    def __post_init__(self) -> None:
        bounded(self, "rounds", least=0)
        bounded(self, "round_prompts", least=1)
        bounded(self, "internal", least=0)
        bounded(self, "anchor", least=0, below=1)
        bounded(self, "anchor_keep", least=0, most=1)
        if self.drafts.beams > 1:
            cure = "Leave it at 1: baselines draw several"
            raise InputError("drafts are sampled, not searched", field="drafts.beams", cure=cure)

    def mode(self, number: int) -> Mode:
        """What round `number`, from 1, is."""
        return "internal" if number <= self.internal else "external"

    def shard(self, prompts: Sequence[Record], number: int) -> list[Record]:
        """The prompts of round `number`."""
        return list(prompts[(number - 1) * self.round_prompts : number * self.round_prompts])


def drafted(policy: Model, prompts: Sequence[Record], how: SampleSettings, seed: int) -> list[Record]:
    """Every prompt's record with "candidates", `how.num_samples` drafts {"text", "finished", "tokens", "logprob"}."""
    encoded = encoded_prompts(policy.tokenizer, [p["prompt"] for p in prompts], most=policy.config.max_positions)
    written = completions(policy, encoded, how, seed)
    return [{**p, "candidates": [one._asdict() for one in each]} for p, each in zip(prompts, written)]


def usable(record: Record) -> list[int]:
    """Numbers of the candidates that are finished, not empty, and not a repetition of an earlier one."""
    seen, out = set[str](), list[int]()
    for number, one in enumerate(record["candidates"]):
        if one["finished"] and one["text"] and one["text"] not in seen:
            seen.add(one["text"])
            out.append(number)
    return out


def pseudo_labels(
    reviser: Reviser, drafts: Sequence[Record], mode: Mode, how: SampleSettings, seed: int
) -> list[Record]:
    """What the policy shall say to each prompt, "response", or None and "why".

    The draft of the highest p_keep is taken, among equal ones the first. It is kept from the threshold on; below it, it
    is left out in an internal round, and revised in an external one. "always" revises the first draft, undecided.
    """
    if mode == "always":
        return _revised(reviser, first_drafts(drafts), None, how, seed)
    places = [(i, number) for i, record in enumerate(drafts) for number in usable(record)]
    scores = decide(reviser, [_asked(drafts[i], drafts[i]["candidates"][number]["text"]) for i, number in places])
    known = p_keep(scores) if len(places) else np.zeros(0)
    keep = np.nan_to_num(known, nan=-1.0)
    taken, every = dict[int, int](), defaultdict[int, list[float | None]](list)
    for at, (i, _) in enumerate(places):
        every[i].append(number_or_none(known[at]))
        if i not in taken or keep[at] > keep[taken[i]]:
            taken[i] = at
    out = [_chosen(record, places[taken[i]][1] if i in taken else None) for i, record in enumerate(drafts)]
    for i, at in taken.items():
        out[i] |= {"p_keep": number_or_none(known[at]), "p_keeps": every[i]}
    below = [i for i, at in taken.items() if keep[at] < reviser.threshold]
    if mode == "internal":
        for i in below:
            unread = out[i]["p_keep"] is None
            out[i] |= {"response": None, "why": "unreadable" if unread else "below the threshold"}
    else:
        again = _revised(reviser, [out[i] for i in below], scores[[taken[i] for i in below]], how, seed)
        for i, record in zip(below, again):
            out[i] = record
    return out


def number_or_none(value: float) -> float | None:
    """A number as a record holds it: None where it is not known."""
    return None if math.isnan(value) else float(value)


def _revised(
    reviser: Reviser, records: Sequence[Record], scores: np.ndarray | None, how: SampleSettings, seed: int
) -> list[Record]:
    """Records whose draft is the response, with its revision in its place where that counts, else None and why."""
    there = [i for i, record in enumerate(records) if record["response"] is not None]
    out = list(records)
    asked = [_asked(records[i], records[i]["response"]) for i in there]
    for i, (text, why, _) in zip(there, revise(reviser, asked, scores, how, seed)):
        out[i] = records[i] | {"revised": text, "response": None if why else text, "why": why or REVISED}
    return out


def _asked(record: Record, draft: str) -> Asked:
    return Asked(({"role": "user", "content": record["prompt"]},), draft)


def anchors(
    reviser: Reviser, policy: Model, prompts: Sequence[Record], s: EvolutionSettings, seed: int
) -> list[Record]:
    """The target's greedy answers that the reviser surely keeps."""
    how = dataclasses.replace(s.drafts, temperature=0.0, top_p=1.0, top_k=0, num_samples=1)
    said = [record for record in first_drafts(drafted(policy, prompts, how, seed)) if record["response"] is not None]
    keep = p_keep(decide(reviser, [_asked(record, record["response"]) for record in said])) if said else np.zeros(0)
    return [{**r, "p_keep": float(p), "why": "anchor"} for r, p in zip(said, keep) if p >= s.anchor_keep]


def best_rewarded(drafts: Sequence[Record], judge: Judge) -> list[Record]:
    """Of every prompt the draft with the highest reward, among equal ones the first; None where none has a reward."""
    places = [(i, number) for i, record in enumerate(drafts) for number in usable(record)]
    answered = [{**drafts[i], "response": drafts[i]["candidates"][number]["text"]} for i, number in places]
    best: dict[int, tuple[float, int]] = {}
    for (i, number), reward in zip(places, judge(answered)):
        if reward is not None and (i not in best or reward > best[i][0]):
            best[i] = (reward, number)
    there = {i for i, _ in places}
    return [
        _chosen(record, best[i][1] if i in best else None, "no reward" if i in there else NOTHING)
        for i, record in enumerate(drafts)
    ]


def first_drafts(drafts: Sequence[Record]) -> list[Record]:
    """Every prompt's first draft that can be used."""
    return [_chosen(record, next(iter(usable(record)), None)) for record in drafts]


def _chosen(record: Record, number: int | None, without: str = NOTHING) -> Record:
    """A prompt with the draft that is taken: {"draft", "text", "response", "why"} beside what it knows; `without` says
    why there is none."""
    known = {name: value for name, value in record.items() if name != "candidates"}
    if number is None:
        return known | {"response": None, "why": without}
    text = record["candidates"][number]["text"]
    return known | {"draft": number, "text": text, "response": text, "why": KEPT}


def mixed(labels: Sequence[Record], anchored: Sequence[Record], share: float, seed: int) -> list[Record]:
    """The pseudo-labels that say something and, as `share` of the whole, anchors; fewer where there are fewer."""
    said = [record for record in labels if record["response"] is not None]
    wanted = min(round(len(said) * share / (1 - share)), len(anchored))
    chosen = np.random.default_rng(seed).permutation(len(anchored))[:wanted]
    return [*said, *(anchored[i] for i in sorted(chosen.tolist()))]


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Pseudo-labels as rows of an SFT stage."""
    return [
        Row(str(r["prompt_id"]), ({"role": "user", "content": r["prompt"]},), (r["response"],)) for r in records
    ]  # fmt: skip


def counted(labels: Sequence[Record], counts: Counter[str]) -> None:
    """Add what became of the prompts of a round."""
    counts["prompts"] += len(labels)
    for record in labels:
        counts[record["why"]] += 1
