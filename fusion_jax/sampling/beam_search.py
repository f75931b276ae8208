"""Beam search: token ids in, the most probable continuations that a search with N beams finds out.

Batches are those of `sampling.ids`: a text that is finished gives its place to the next, and what is found for a prompt
does not depend on what it is searched with, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.sampling.beams import Found, Rules, Searching, begin, go_on, no_beams, room_of, with_room
from fusion_jax.sampling.prompts import Ready, ready
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.session import admit, on_host, tokens_kept
from fusion_jax.sampling.sizes import BLOCK, written_width
from fusion_jax.sampling.slots import by_width, check_prompts, empty_slots, filled, other_room, rooms_of, waiting
from fusion_jax.settings import bounded
from fusion_jax.sharding import data_ways, padded_rows, placed

_NO_LIMIT = 2**30
_MOST_PENALTY = 5.0  # powers of lengths stay in float32


@dataclass(frozen=True)
class BeamSearch:
    """How a search goes; the names and their meaning are those of `transformers`.

    A finished hypothesis of n tokens, its stop token included, has the score (sum of log p) / n ** length_penalty. The
    N = `beams` best are kept. A text is done when N are kept and none that is unfinished can be better: by its sum so
    far over its length so far, which is exact at length_penalty 0 and below (early_stopping False); over the greatest
    length, which is exact ("never"); or as soon as N are kept (True).

    Raises:
      InputError: a value out of its range.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        bounded(self, "beams", least=1)
        bounded(self, "length_penalty", least=-_MOST_PENALTY, most=_MOST_PENALTY)
        bounded(self, "no_repeat_ngram", least=0)
        if self.early_stopping not in (True, False, "never"):
            cure = 'Give True, False or "never"'
            raise InputError(f"{self.early_stopping!r} is not known", field="early_stopping", cure=cure)


def refuse_samples(sampler: Sampler, num_samples: int, *, stops_by_text: bool = False) -> None:
    """Refuse what a search does not do: it draws nothing, weighs tokens by their probability alone, gives one answer,
    and ends hypotheses at stop tokens only.

    Raises:
      InputError: names the option of sampling that makes no sense beside it.
    """
    for name, wrong, cure in (
        ("temperature", sampler.temperature != 0.0, "Set it to 0"),
        ("repetition_penalty", sampler.penalises, "Set it to 1; no_repeat_ngram excludes repetitions"),
        ("num_samples", num_samples != 1, "Set it to 1"),
        ("stop_strings", stops_by_text, "Leave them out"),
    ):
        if wrong:
            raise InputError("does not go together with beams", field=name, cure=f"{cure}, or beams to 1")


class Hypothesis(NamedTuple):
    """Generated ids without the stop token, whether a stop token ended them, the sum of their log-probabilities, the
    stop token's included, and the score."""

    ids: list[int]
    finished: bool
    logprob: float
    score: float


class _Asked(NamedTuple):
    """Prompts and what is asked of them. limit: tokens of a continuation; rows: prompts at once."""

    prompts: Sequence[Sequence[int]]
    how: BeamSearch
    limit: int
    stop_ids: Sequence[int]
    rows: int
    allowed: np.ndarray | None


def beam_search(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    how: BeamSearch,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    allowed: np.ndarray | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Hypothesis]]:
    """The best hypotheses for every prompt, up to `how.beams` of them, best first, in the prompts' order.

    Args:
      prompts, stop_ids, batch_size, mesh, dtype, progress: as in `generate_ids`; a prompt takes `how.beams` rows.
      allowed: bool[V], tokens that may be chosen, of unchanged log-probability; None: all.

    Raises:
      InputError: as `generate_ids`; a prompt for which every continuation is excluded.
    """
    check_prompts(prompts, config, max_new_tokens)
    if max_new_tokens <= 0 or not prompts:
        return [[Hypothesis([], False, 0.0, 0.0)] for _ in prompts]
    model = ready(params, config, dtype, mesh)
    asked = _Asked(prompts, how, max_new_tokens, stop_ids, padded_rows(batch_size, data_ways(mesh)), allowed)
    out: list[list[Hypothesis]] = [[] for _ in prompts]
    done = 0
    for width, alike in by_width(prompts):
        for number, hypotheses in _searched(model, asked, alike, width):
            if not hypotheses:
                raise InputError(
                    "no continuation has a finite log-probability", record=number + 1,
                    cure="Check the weights, the dtype and which tokens are excluded",
                )  # fmt: skip
            out[number] = hypotheses
            done += 1
            progress(done)
    return out


def _searched(
    model: Ready, asked: _Asked, numbers: Sequence[int], width: int
) -> Iterator[tuple[int, list[Hypothesis]]]:
    """The hypotheses for prompts that are kept at one width, as they are finished."""
    how, mesh, count = model.how, model.how.mesh, asked.rows
    search = Searching(asked.how.beams, written_width(asked.limit), BLOCK, asked.how.no_repeat_ngram)
    texts, rooms = empty_slots(model, count, width), rooms_of(asked.limit, search.block)
    beams, rules = no_beams(how, search, count, rooms[0])(), _rules(model, asked, search)
    coming, slots, left = waiting(model, asked.prompts, numbers, count), [-1] * count, len(numbers)
    while left or any(number >= 0 for number in slots):
        came = np.zeros(count, bool)
        for group, taken in filled(coming, slots):
            texts = admit(how)(texts, group, placed(taken, mesh, ("batch",)))
            came |= taken >= 0
        left -= int(came.sum())
        if came.any():
            rules = rules._replace(prompts=_prompts(model, asked, slots, tokens_kept(texts.kept)))
            beams = begin(how, search)(model.apart, texts, rules, beams, placed(came, mesh, ("batch",)))
        vacant = slots.count(-1) + max(1, count // 4) if left else _NO_LIMIT
        beams = go_on(how, search)(model.apart, texts, rules, beams, np.int32(vacant))
        open_, counts = on_host(beams.open, mesh), on_host(beams.counts, mesh)
        closed = [slot for slot, number in enumerate(slots) if number >= 0 and not open_[slot]]
        if closed:
            found = Found(*(on_host(x, mesh) for x in beams.found))  # type: ignore[arg-type]
        for slot in closed:
            yield slots[slot], _hypotheses(found, slot)
            slots[slot] = -1
        if beams.cache is not None:
            room = other_room(rooms, room_of(search, beams), counts[open_], search.block)
            beams = beams if room is None else with_room(how, search, room)(beams)


def _rules(model: Ready, asked: _Asked, search: Searching) -> Rules:
    how, mesh, limit = asked.how, model.how.mesh, asked.limit
    lengths = np.maximum(np.arange(search.tokens + 1, dtype=np.float64), 1.0)
    exact = how.early_stopping == "never" and how.length_penalty > 0
    divisors, bounds = (
        placed((one**how.length_penalty).astype(np.float32), mesh, (None,))
        for one in (lengths, np.full_like(lengths, limit) if exact else lengths)
    )
    stop_ids = placed(np.asarray(list(dict.fromkeys(asked.stop_ids)) or [-1], np.int32), mesh, (None,))
    allowed = None if asked.allowed is None else placed(asked.allowed, mesh, (None,))
    early = placed(np.asarray(how.early_stopping is True), mesh, ())
    return Rules(stop_ids, np.int32(limit), divisors, bounds, early, allowed)


def _prompts(model: Ready, asked: _Asked, slots: Sequence[int], width: int) -> Any:
    """int[C,P], the decoder's tokens of the texts in the slots, where n-grams must not repeat; else None."""
    if not asked.how.no_repeat_ngram:
        return None
    config, tokens = model.how.config, np.zeros((len(slots), width), np.int32)
    for row, number in enumerate(slots):
        if number >= 0:
            own = [config.start] if config.encoder else asked.prompts[number]
            tokens[row, : len(own)] = own
    return placed(tokens, model.how.mesh, ("batch", None))


def _hypotheses(found: Found, slot: int) -> list[Hypothesis]:
    """Those of one text that were found, best first."""
    ids, counts, ended, logprobs, scores = (np.asarray(x[slot]) for x in found)
    return [
        Hypothesis(ids[n, : counts[n]].tolist(), bool(ended[n]), float(logprobs[n]), float(scores[n]))
        for n in range(len(counts))
        if math.isfinite(scores[n])
    ]
