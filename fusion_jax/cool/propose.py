"""What each model would write next: greedy tokens up to the first place where a word may end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source
from fusion_jax.cool.texts import Text, common_starts, starts_of, written
from fusion_jax.cool.words import finished
from fusion_jax.errors import InputError
from fusion_jax.models.decode import next_logits
from fusion_jax.sampling.drafts import Draft, Rules, Writing, begin, empty_draft, go_on
from fusion_jax.sampling.prompts import How, compiled_for
from fusion_jax.sampling.session import Session, on_host
from fusion_jax.sharding import placed

Array = jax.Array
Reason = Literal["boundary", "end", "cap"]
FIRST_CHOICES = (64, 512, 4096)  # tokens that are tried first where a word has to begin; then all


class Proposal(NamedTuple):
    """A segment that one model offers. end: whether the answer stops behind it; ids: the tokens that it wrote, those
    behind the segment and the end token included; reason: why it stopped; forwards: passes through the model."""

    text: str
    end: bool
    ids: tuple[int, ...]
    reason: Reason
    forwards: int


@dataclass
class Lane:
    """One model at work on a batch of texts, a row each. number: its place among the models; draft: what it has written
    behind the texts."""

    number: int
    source: Source
    session: Session
    draft: Draft
    writing: Writing
    rules: Rules

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.session.read.lengths.shape[0]


def lane(number: int, source: Source, session: Session, s: CoolSettings) -> Lane:
    """A model with a session and nothing written."""
    writing = Writing(s.segment_tokens, block=s.segment_tokens, traced=True)
    rows, mesh = session.read.lengths.shape[0], source.model.how.mesh
    keys = placed(np.zeros((rows, 2), np.uint32), mesh, ("batch", None))
    ends = placed(np.asarray(source.ends, np.int32), mesh, (None,))
    rules = Rules(keys, ends, np.int32(writing.tokens), source.allowed, source.pauses)
    return Lane(number, source, session, empty_draft(source.model.how, writing, rows, 0)(), writing, rules)


def proposals(lanes: Sequence[Lane], texts: Mapping[int, Text], s: CoolSettings) -> list[dict[int, Proposal]]:
    """The proposals of each model for each of these rows. All models compute before the first result is read."""
    for one in lanes:
        one.draft = _begun(one, lanes, texts, s)
    found: list[dict[int, Proposal]] = [{} for _ in lanes]
    seen = [{row: _Seen() for row in texts} for _ in lanes]
    while any(seen):
        waiting = [number for number, rows in enumerate(seen) if rows]
        for number in waiting:
            lanes[number].draft = _gone_on(lanes[number], list(seen[number]))
        for number in waiting:
            found[number] |= _examine(lanes[number], lanes, texts, s, seen[number])
    return found


def _begun(one: Lane, lanes: Sequence[Lane], texts: Mapping[int, Text], s: CoolSettings) -> Draft:
    """The first token of each row."""
    model, forced = one.source.model, None
    some = np.zeros(one.rows, bool)
    some[list(texts)] = True
    if s.closed:
        first = _first_words(one, {row: text for row, text in texts.items() if text.segments}, lanes)
        forced = placed(first, model.how.mesh, ("batch",))
    chosen = placed(some, model.how.mesh, ("batch",))
    program = begin(model.how, one.writing)
    return program(model.apart, one.session.read, one.rules, one.draft, chosen, None, forced)


def _gone_on(one: Lane, rows: Sequence[int]) -> Draft:
    """More tokens of these rows, up to where a segment may end."""
    model, most, paused = one.source.model, np.int32(2**30), np.ones(one.rows, bool)
    paused[list(rows)] = False
    draft = one.draft._replace(paused=placed(paused, model.how.mesh, ("batch",)))
    return go_on(model.how, one.writing)(model.apart, one.session.read, one.rules, draft, most, most)


class _Seen(NamedTuple):
    """What was looked at of a row: so many tokens, and what they say."""

    tokens: int = 0
    text: str = ""


def _examine(
    one: Lane, lanes: Sequence[Lane], texts: Mapping[int, Text], s: CoolSettings, seen: dict[int, _Seen]
) -> dict[int, Proposal]:
    """The proposals of the rows of a model whose segments have ended by now.

    Args:
      seen: of the rows that have no proposal yet; it is brought forward, and loses those that have one.
    """
    draft, mesh = one.draft, one.source.model.how.mesh
    ids, counts, ended, logprobs = (on_host(x, mesh) for x in (draft.ids, draft.counts, draft.ended, draft.logprobs))
    asked = [(row, count) for row, old in seen.items() for count in range(old.tokens + 1, int(counts[row]) + 1)]
    behind = written(one.source.words, one.number, [(texts[row], ids[row, :count].tolist()) for row, count in asked])
    found = {}
    for (row, count), said in zip(asked, behind, strict=True):
        if row in found:
            continue
        seen[row] = _Seen(count, finished(said))
        place = _boundary(one, lanes, texts[row], seen[row].text, s)
        if place is not None:
            own = tuple(ids[row, :count].tolist())
            found[row] = Proposal(seen[row].text[:place], False, own, "boundary", int(counts[row]) - 1)
    for row, old in list(seen.items()):
        if not np.isfinite(logprobs[row]):
            raise InputError("the model's logits are not finite", file=one.source.name, cure="Check the weights")
        if row not in found and (ended[row] or counts[row] >= s.segment_tokens):
            end = bool(ended[row])
            own = tuple(ids[row, : counts[row] + end].tolist())
            found[row] = Proposal(old.text, end, own, "end" if end else "cap", len(own) - 1)
    for row in found:
        del seen[row]
    return found


def _boundary(one: Lane, lanes: Sequence[Lane], text: Text, said: str, s: CoolSettings) -> int | None:
    """Where the segment ends in what a model says behind a text, if it ends there."""
    if len(said) < 2:
        return None
    if s.mode == "cool_shortest":
        starts = starts_of(one.source.words, one.number, text, said)
    else:
        starts = common_starts([lane.source.words for lane in lanes], text, said)
    behind = [place - len(text.text) for place in starts if place > len(text.text)]
    return behind[s.words_per_segment - 1] if len(behind) >= s.words_per_segment else None


def _first_words(one: Lane, texts: Mapping[int, Text], lanes: Sequence[Lane]) -> np.ndarray:
    """int[B], the most probable token of each row that ends the answer or begins a new word; -1 in other rows."""
    source, mesh = one.source, one.source.model.how.mesh
    size, out = source.model.how.config.vocab_size, np.full(one.rows, -1, np.int32)
    for tried, many in pairwise((0, *(few for few in FIRST_CHOICES if few < size), size)):
        order = on_host(_most_probable(source.model.how, many)(source.model.apart.rest, one.session.read.last), mesh)
        for row, text in texts.items():
            if out[row] >= 0:
                continue
            offered = [token for token in order[row, tried:].tolist() if not source.forbidden[token]]
            said = written(source.words, one.number, [(text, [token]) for token in offered])
            fitting = (t for t, r in zip(offered, said, strict=True) if t in source.ends or _begins(text, r, lanes))
            out[row] = next(fitting, -1)
        if all(out[row] >= 0 for row in texts):
            break
    return out


def _begins(text: Text, said: str, lanes: Sequence[Lane]) -> bool:
    """Whether what is said begins with a word of its own."""
    if not said or said[0].isspace():
        return bool(said)
    return len(text.text) in common_starts([one.source.words for one in lanes], text, said)


@compiled_for
def _most_probable(how: How, many: int, rest: Any, last: Array) -> Array:
    """int[B,many], tokens by falling probability behind hidden states [B,D]."""
    return jax.lax.top_k(next_logits(last, rest, how.config), many)[1]
