"""Policy evolution of SEFT (arXiv 2406.10813): drafts of the policy, what the reviser makes of them, what is learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusion_jax.data.records import Row
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.rewards.revision import p_keep
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.revising import Asked, Reviser, completions, decide, revise
from fusion_jax.sampling.generate import SampleSettings, encoded_prompts
from fusion_jax.settings import bounded
from fusion_jax.train import objectives

Mode = Literal["internal", "external", "always"]
KEPT, REVISED = "kept", "revised"
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
    places = [(i, number) for i, record in enumerate(drafts) for number in usable(record)]
    if mode == "always":
        places = list({i: (i, number) for i, number in reversed(places)}.values())[::-1]
    asked = [_asked(drafts[i], number) for i, number in places]
    scores = decide(reviser, asked) if mode != "always" else None
    keep = np.full(len(asked), np.nan) if scores is None else p_keep(scores) if len(asked) else np.zeros(0)
    best: dict[int, int] = {}
    for at, (i, _) in enumerate(places):
        if i not in best or keep[at] > keep[best[i]]:
            best[i] = at
    below = [at for at in best.values() if not keep[at] >= reviser.threshold]
    revised = {}
    if mode != "internal" and below:
        some = None if scores is None else scores[below]
        revised = dict(zip(below, revise(reviser, [asked[at] for at in below], some, how, seed)))
    every: dict[int, dict[int, float]] = {}
    for at, (i, number) in enumerate(places):
        every.setdefault(i, {})[number] = float(keep[at])
    out = []
    for i, record in enumerate(drafts):
        known = {name: value for name, value in record.items() if name != "candidates"} | {"mode": mode}
        if i not in best:
            out.append(known | {"response": None, "why": "no finished draft"})
            continue
        at = best[i]
        number = places[at][1]
        draft = asked[at].draft
        known |= {"draft": number, "text": draft, "tokens": record["candidates"][number]["tokens"]}
        if scores is not None:
            known |= {"p_keep": float(keep[at]), "p_keeps": {str(n): p for n, p in every[i].items()}}
        if keep[at] >= reviser.threshold:
            known |= {"response": draft, "why": KEPT}
        elif mode == "internal":
            known |= {"response": None, "why": "below the threshold"}
        else:
            text, fault = revised[at]
            known |= {"revised": text, "response": None if fault else text, "why": fault or REVISED}
        out.append(known)
    return out


def _asked(record: Record, number: int) -> Asked:
    return Asked(({"role": "user", "content": record["prompt"]},), record["candidates"][number]["text"])


def anchors(
    reviser: Reviser, policy: Model, prompts: Sequence[Record], s: EvolutionSettings, seed: int
) -> list[Record]:
    """Greedy answers of the target that the reviser surely keeps, as many at most as a round mixes in."""
    how = SampleSettings(0.0, 1.0, 0, 1, s.drafts.max_new_tokens, s.drafts.batch_size, s.drafts.mesh_tensor)
    drafts = drafted(policy, prompts, how, seed)
    places = [(i, 0) for i, record in enumerate(drafts) if usable(record)]
    asked = [_asked(drafts[i], number) for i, number in places]
    keep = p_keep(decide(reviser, asked)) if asked else np.zeros(0)
    return [
        {**prompts[i], "response": one.draft, "p_keep": float(p), "mode": "anchor", "why": "anchor"}
        for (i, _), one, p in zip(places, asked, keep)
        if p >= s.anchor_keep
    ]


def best_rewarded(drafts: Sequence[Record], judge: Judge) -> list[Record]:
    """Of every prompt the draft with the highest reward, among equal ones the first; None where none has a reward."""
    places = [(i, number) for i, record in enumerate(drafts) for number in usable(record)]
    answered = [{**drafts[i], "response": drafts[i]["candidates"][number]["text"]} for i, number in places]
    best: dict[int, tuple[float, int]] = {}
    for (i, number), reward in zip(places, judge(answered)):
        if reward is not None and (i not in best or reward > best[i][0]):
            best[i] = (reward, number)
    return [_chosen(record, best[i][1] if i in best else None) for i, record in enumerate(drafts)]


def first_drafts(drafts: Sequence[Record]) -> list[Record]:
    """Every prompt's first draft that can be used."""
    return [_chosen(record, next(iter(usable(record)), None)) for record in drafts]


def _chosen(record: Record, number: int | None) -> Record:
    known = {name: value for name, value in record.items() if name != "candidates"} | {"draft": number}
    if number is None:
        return known | {"response": None, "why": "no finished draft"}
    return known | {"response": record["candidates"][number]["text"], "why": KEPT}


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


def learnt(desk: Desk, stage: Stage, start: Model, records: Sequence[Record]) -> Model:
    """The policy after a round; as it was where the round's records do not fill a batch."""
    if len(records) < stage.settings.batch_size:
        desk.run.log(f"{stage.name}: {len(records)} records do not fill a batch, the policy stays as it is")
        return start
    return desk.train(stage, start, objectives.sft(), rows_of(records))
