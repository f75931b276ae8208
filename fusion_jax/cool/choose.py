"""Which of the proposed segments all models like best, and that one committed to every model's session.

A model's perplexity of a segment is read from one forward pass over all segments side by side; of a segment that it has
written itself from that. The pass has also computed what the model keeps of the winner's tokens, so none follows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusion_jax.cool.propose import Lane, Proposal
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.texts import Text, append, encode_behind, tokens_before
from fusion_jax.cool.words import Encoded
from fusion_jax.sampling.drafts import commit_draft
from fusion_jax.sampling.session import Candidate, Packed, behind, commit, on_host, pack, scores

MOST_LOG = 80.0  # of a perplexity, so that it is finite


class Offer(NamedTuple):
    """A segment that is scored. first: the number of the model that proposed it first."""

    text: str
    end: bool
    first: int


class Opinion(NamedTuple):
    """What one model says of one segment. ids: its tokens of it, the end token included where that is scored; nll: the
    sum of their negative log-probabilities; perplexity: by the norm of the settings; None: it has no token of it."""

    ids: tuple[int, ...]
    nll: float
    perplexity: float | None


@dataclass(frozen=True)
class Choice:
    """One step of a text: what each model proposed (None: nothing), the segments that differ, each model's opinion of
    each (none where there was nothing to choose), their combined scores, and the winner.

    packed: whether each model read segments that it had not written, in one more forward pass.
    """

    proposals: tuple[Proposal | None, ...]
    offers: tuple[Offer, ...]
    opinions: tuple[tuple[Opinion, ...], ...]
    scores: tuple[float, ...]
    winner: int
    packed: tuple[bool, ...]


def offers_of(proposals: Sequence[Proposal]) -> tuple[Offer, ...]:
    """The segments that differ, in the models' order; those that are empty and do not end the answer are none."""
    out: dict[tuple[str, bool], Offer] = {}
    for number, one in enumerate(proposals):
        if one.text or one.end:
            out.setdefault((one.text, one.end), Offer(one.text, one.end, number))
    return tuple(out.values())


def opinion(ids: Sequence[int], logprobs: np.ndarray, text: str, end: bool, s: CoolSettings) -> Opinion:
    """PPL = exp(NLL / n), n the model's tokens of the text, or its characters or bytes, and one for the end token."""
    nll = -float(logprobs.sum(dtype=np.float64))
    ends = int(end and s.score_end)
    count = {"token": len(ids), "char": len(text) + ends, "byte": len(text.encode()) + ends}[s.norm]
    perplexity = math.exp(min(nll / count, MOST_LOG)) if count and len(ids) else None
    return Opinion(tuple(ids), nll, perplexity)


def combined(opinions: Sequence[Opinion], s: CoolSettings) -> float:
    """The models' perplexities of one segment as one score, the lower the better; infinite where nobody has one."""
    found = [one.perplexity for one in opinions if one.perplexity is not None]
    if not found:
        return math.inf
    match s.combine:
        case "mean_ppl":
            return statistics.fmean(found)
        case "mean_log_ppl":
            return math.exp(statistics.fmean(map(math.log, found)))
        case "median_ppl":
            return statistics.median(found)
        case "primary_ppl":
            first = opinions[0].perplexity
            return math.inf if first is None else first


class _Plan(NamedTuple):
    """What one model does with one row's segments.

    tokens: of the whole text with each segment; new: from which of them on they are the segment's, by the ends of their
    characters; own: the segment whose tokens are those that it has written, None: there is none; packed: the segments
    that it reads, in their order.
    """

    tokens: list[Encoded]
    new: list[int]
    own: int | None
    packed: list[int]


@dataclass(frozen=True)
class _Step:
    """What is decided at one step of a batch. texts, offers: of the rows to which something is offered."""

    texts: Mapping[int, Text]
    offers: Mapping[int, Sequence[Offer]]
    s: CoolSettings

    def ending(self, lane: Lane, offer: Offer) -> tuple[int, ...]:
        """The end token, where it is scored."""
        return (lane.source.end,) if offer.end and self.s.score_end else ()


def choose(
    lanes: Sequence[Lane], texts: Mapping[int, Text], found: Sequence[Mapping[int, Proposal]], most: Mapping[int, int],
    s: CoolSettings,
) -> dict[int, Choice]:  # fmt: skip
    """One step of every row: the winner is committed, unless it ends the answer. A row to which nothing is offered
    stays as it is.

    Args:
      most: tokens that each text may have; segments with which a model counts more, or that would change its first
        token, are not offered.
    """
    offered = {row: offers_of([one[row] for one in found]) for row in texts}
    encoded = [_encoded(lane, texts, offered) for lane in lanes]
    offers = {
        row: tuple(offer for offer in some if all(_readable(lane, one[row, offer], row, most[row])
                                                  for lane, one in zip(lanes, encoded, strict=True)))
        for row, some in offered.items()
    }  # fmt: skip
    alive = [row for row in texts if offers[row]]
    step = _Step({row: texts[row] for row in alive}, {row: offers[row] for row in alive}, s)
    plans = [_plans(lane, step, own, tokens) for lane, own, tokens in zip(lanes, found, encoded, strict=True)]
    packs = [_packed(lane, step, plan) for lane, plan in zip(lanes, plans, strict=True)]
    opinions = [_opinions(lane, step, plan, read) for lane, plan, read in zip(lanes, plans, packs, strict=True)]
    out, winners = {}, {}
    for row, some in offers.items():
        told = tuple(one[row] for one in opinions) if len(some) > 1 else ()
        values = tuple(combined([one[place] for one in told], s) for place in range(len(some))) if told else ()
        winner = min(range(len(values)), key=values.__getitem__, default=0)
        packed = tuple(bool(some) and bool(plan[row].packed) for plan in plans)
        out[row] = Choice(tuple(one[row] for one in found), some, told, values, winner, packed)
        if some and not some[winner].end:
            winners[row] = winner
    for lane, plan, read in zip(lanes, plans, packs, strict=True):
        _commit(lane, plan, read, winners)
    words = [lane.source.words for lane in lanes]
    for row, winner in winners.items():
        append(words, texts[row], offers[row][winner].text, [plan[row].tokens[winner] for plan in plans])
    return out


def _encoded(
    lane: Lane, texts: Mapping[int, Text], offers: Mapping[int, Sequence[Offer]]
) -> dict[tuple[int, Offer], Encoded]:
    """A model's tokens of the whole text with each segment behind it."""
    asked = [(row, offer) for row, some in offers.items() for offer in some]
    found = encode_behind(lane.source.words, lane.number, [(texts[row], offer.text) for row, offer in asked])
    return dict(zip(asked, found, strict=True))


def _readable(lane: Lane, tokens: Encoded, row: int, most: int) -> bool:
    """Whether a model can go on to these tokens: they fit, with an end token, and begin as what it holds."""
    return len(tokens.ids) < most and tokens.ids[:1] == lane.session.texts[row][:1]


def _plans(
    lane: Lane, step: _Step, proposed: Mapping[int, Proposal], encoded: Mapping[tuple[int, Offer], Encoded]
) -> dict[int, _Plan]:
    """Of each row."""
    tokens = {row: [encoded[row, offer] for offer in some] for row, some in step.offers.items()}
    out = {}
    for row, some in step.offers.items():
        held, text = lane.session.texts[row], step.texts[row]
        before = len(text.held[lane.number].prompt) + len(text.text)
        new = [tokens_before(one, before) for one in tokens[row]]
        own = [
            place for place, offer in enumerate(some)
            if new[place] >= len(held)
            and _is_own((offer.text, offer.end), tokens[row][place].ids, held, proposed[row], step.ending(lane, offer))
        ]  # fmt: skip
        needed = len(some) > 1 or not some[0].end
        packed = [place for place in range(len(some)) if needed and place not in own]
        out[row] = _Plan(tokens[row], new, own[0] if own else None, packed)
    return out


def _is_own(
    offer: tuple[str, bool], ids: Sequence[int], held: Sequence[int], proposal: Proposal, ending: Sequence[int]
) -> bool:
    """Whether a model has written exactly these tokens, and read all that are to be kept of them."""
    count, read = len(ids) - len(held), len(proposal.ids) - 1  # behind the last token nothing was read
    if (proposal.text, proposal.end) != offer or tuple(ids) != (*held, *proposal.ids[: max(count, 0)]):
        return False
    if proposal.end:
        return count == read and tuple(ending) in ((), proposal.ids[-1:])
    return 0 < count <= read


def _packed(lane: Lane, step: _Step, plans: Mapping[int, _Plan]) -> Packed | None:
    """The segments that a model has not written itself, in one forward pass; None where there are none."""
    offered: list[list[Candidate]] = [[] for _ in lane.session.texts]
    for row, plan in plans.items():
        for place in plan.packed:
            ids = plan.tokens[place].ids + step.ending(lane, step.offers[row][place])
            offered[row].append(behind(lane.session.texts[row], ids, plan.new[place]))
    return pack(lane.source.model, lane.session, offered) if any(offered) else None


def _opinions(
    lane: Lane, step: _Step, plans: Mapping[int, _Plan], packed: Packed | None
) -> dict[int, tuple[Opinion, ...]]:
    """What a model says of every segment of the rows that have several."""
    several = [row for row, some in step.offers.items() if len(some) > 1]
    if not several or lane.draft.trace is None:
        return {}
    read = [] if packed is None else scores(lane.source.model, packed)
    traced = on_host(lane.draft.trace.logprobs, lane.source.model.how.mesh)

    def of(row: int, place: int, offer: Offer) -> Opinion:
        plan = plans[row]
        ids = plan.tokens[place].ids + step.ending(lane, offer)
        new = len(ids) - plan.new[place]
        if place == plan.own:
            known = traced[row, : len(ids) - len(lane.session.texts[row])]
        else:
            known = read[row][plan.packed.index(place)].logprobs
        return opinion(ids[len(ids) - new :], known[len(known) - new :], offer.text, offer.end, step.s)

    return {row: tuple(of(row, *one) for one in enumerate(step.offers[row])) for row in several}


def _commit(lane: Lane, plans: Mapping[int, _Plan], packed: Packed | None, winners: Mapping[int, int]) -> None:
    """The winners into a model's session, from what it wrote or from what it read."""
    counts = [0] * len(lane.session.texts)
    chosen: list[int | None] = [None] * len(lane.session.texts)
    for row, winner in winners.items():
        plan = plans[row]
        if winner == plan.own:
            counts[row] = len(plan.tokens[winner].ids) - len(lane.session.texts[row])
        else:
            chosen[row] = plan.packed.index(winner)
    lane.session = commit_draft(lane.source.model, lane.session, lane.draft, counts)
    if packed is not None:
        lane.session = commit(lane.source.model, lane.session, packed, chosen)
