"""The base model sits the exam: four letters' logits behind each question, in one forward pass, without any sampling.

What all prompts begin with is read once, and the questions behind it side by side, right-padded to a few widths; of the
head only the letters' rows are read. The answers are those that the model gives to whole prompts one by one, up to
rounding.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import bucket_list
from fusion_jax.data.clip import Clip
from fusion_jax.errors import InputError
from fusion_jax.kca.papers import Paper, Suffixes, asked, common_lead, letter_ids, suffixes, turned
from fusion_jax.kca.records import LETTERS, ExamItem
from fusion_jax.models.decode import Behind, DecodeParams, read_on
from fusion_jax.models.decoder import Params, head_kernel, soft_capped
from fusion_jax.models.folder import Model
from fusion_jax.options import File
from fusion_jax.sampling.continuations import Choices, scores_of
from fusion_jax.sampling.generate import sampling_dtype
from fusion_jax.sampling.prompts import How, Read, Ready, compiled_for, read, ready
from fusion_jax.sampling.session import on_host, start, tokens_kept
from fusion_jax.sampling.sizes import chunks
from fusion_jax.settings import bounded
from fusion_jax.sharding import data_ways, padded_rows, placed

Array = jax.Array
LONG = "longer than the window"
WAITING = 16  # batches that are computed before their answers are fetched


@dataclass(frozen=True)
class ExamSettings:
    """How the base model is examined."""

    shots: int = 5
    """Solved questions before each one; fewer where the window does not hold them."""
    questions: int = 3
    """Questions on each instance, at most."""
    threshold: float = 0.6
    """Share of right answers that an instance has to exceed to count as known."""
    turns: int = 1
    """How often a question is asked with its options moved on by a place: 1, or up to 4, whose log-probabilities are
    averaged, against a model that prefers a place."""
    margin: float = 0.0
    """Probability by which the right letter has to lead before the next one; 0: none."""
    batch_size: int = 64
    """Questions at once, over all devices."""
    window: int = 2048
    """Longest prompt in tokens, where the model's own positions allow it."""
    exemplars: File = ""
    """The solved questions, {"question", "options", "answer"} each; without, five built-in ones."""

    def __post_init__(self) -> None:
        bounded(self, "shots", least=0)
        bounded(self, "questions", "batch_size", "window", least=1)
        bounded(self, "turns", least=1, most=4)
        bounded(self, "threshold", "margin", least=0, below=1)


class Sat(NamedTuple):
    """What the model makes of one question. logprobs: of the four options, summing to 1 in probability; correct:
    whether the right one is the most probable, of several the earliest, by the margin."""

    logprobs: tuple[float, float, float, float]
    correct: bool

    @property
    def choice(self) -> str:
        """The letter of the most probable option."""
        return LETTERS[int(np.argmax(self.logprobs))]


def sit(
    model: Model,
    tests: Sequence[ExamItem],
    paper: Paper,
    s: ExamSettings,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Sat | None], Counter[str]]:
    """The model's answer to every question, None to those that its window does not hold; and counts of what was cut.

    Raises:
      InputError: no tokenizer, an encoder, letters that the tokenizer does not tell apart, logits that are not finite.
    """
    if not model.config.decoder or model.config.encoder:
        cure = "Give a language model's folder"
        raise InputError("is no decoder", file=model.folder or None, field="base", cure=cure)
    made = ready(model.params, model.config, sampling_dtype(model), mesh)
    every = [turned(test, by) for test in tests for by in range(s.turns)]
    found = np.full((len(every), 4), np.nan)
    counts, done = Counter[str](), 0
    for numbers, logits in _answers(model, made, every, paper, s, counts):
        found[numbers] = logits
        done += len(numbers)
        progress(done // s.turns)
    out = [_sat(test, found[i * s.turns : (i + 1) * s.turns], s.margin) for i, test in enumerate(tests)]
    counts[LONG] += sum(one is None for one in out)
    return out, +counts


def _sat(test: ExamItem, logits: np.ndarray, margin: float) -> Sat | None:
    """One question's answer from its logits [turns,4], each turn's options moved on by one place more."""
    if np.isnan(logits).any():
        return None
    own = np.stack([np.roll(row - np.logaddexp.reduce(row), -by) for by, row in enumerate(logits)])
    mean = own.mean(0)
    mean -= np.logaddexp.reduce(mean)
    right = LETTERS.index(test.answer)
    lead = np.exp(mean[right]) - np.exp(np.delete(mean, right)).max()
    logprobs = tuple(float(value) for value in mean)
    return Sat(logprobs, bool(np.argmax(mean) == right and lead >= margin))  # type: ignore[arg-type]


def _answers(
    model: Model, made: Ready, tests: Sequence[ExamItem], paper: Paper, s: ExamSettings, counts: Counter[str]
) -> Iterator[tuple[list[int], np.ndarray]]:  # fmt: skip
    """Numbers of questions and their letters' logits [n,4], with as many exemplars as the window holds."""
    tokenizer = model.reader
    room = min(s.window, model.config.max_positions)
    clip, shots = Clip(tokenizer, room), min(s.shots, len(paper.exemplars))
    left = [number for number, test in enumerate(tests) if not clip.too_long(asked(test))]
    while left and shots >= 0:
        before = paper.before(shots)
        letters = letter_ids(tokenizer, before + asked(tests[left[0]]))
        cut = suffixes(tokenizer, before, [asked(tests[number]) for number in left])
        spare = max(map(len, letters)) - 1
        fits = [len(cut.shared) + len(own) + spare <= room for own in cut.own]
        held = [number for number, fit in zip(left, fits, strict=True) if fit]
        own = [ids for ids, fit in zip(cut.own, fits, strict=True) if fit]
        for places, logits in _logits(made, Suffixes(cut.shared, own), letters, s.batch_size):
            if not np.isfinite(logits).all():
                raise InputError("the logits are not finite", file=model.folder or None, cure="Check the weights")
            yield [held[place] for place in places], logits
        left = [number for number, fit in zip(left, fits, strict=True) if not fit]
        counts["questions with fewer exemplars"] += len(held) if shots < min(s.shots, len(paper.exemplars)) else 0
        shots -= 1


def _logits(
    made: Ready, cut: Suffixes, letters: Sequence[tuple[int, ...]], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:  # fmt: skip
    """Letters' logits, or summed log-probabilities where a letter is several tokens."""
    lead = common_lead(letters)
    if any(len(ids) != lead + 1 for ids in letters):
        for number, ids in scores_of(made, [Choices([*cut.shared, *own], letters) for own in cut.own], batch_size):
            yield [number], np.asarray([[one.logprob for one in ids]])
        return
    cut = Suffixes(cut.shared, [np.concatenate([own, np.asarray(letters[0][:lead], np.int32)]) for own in cut.own])
    own = np.asarray([ids[lead] for ids in letters], np.int32)
    yield from (_behind_prefix if _cacheable(made, cut) else _whole)(made, cut, own, batch_size)


def _cacheable(made: Ready, cut: Suffixes) -> bool:
    """Whether what is kept of the shared tokens fits longer texts: some models turn all tokens otherwise from a length
    on."""
    longest = len(cut.shared) + max(map(len, cut.own), default=0)
    return bool(cut.shared) and not any(
        len(cut.shared) <= place < longest for place in made.how.config.positions.switches
    )


def _whole(
    made: Ready, cut: Suffixes, letters: np.ndarray, batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:  # fmt: skip
    """Every prompt read from its beginning."""
    prompts = [[*cut.shared, *own.tolist()] for own in cut.own]
    for numbers, texts in read(made, prompts, batch_size):
        logits = _letter_logits(made.how)(made.apart.rest, texts.last, letters)
        yield numbers, on_host(logits, made.how.mesh)[: len(numbers)]


def _behind_prefix(
    made: Ready, cut: Suffixes, letters: np.ndarray, batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:  # fmt: skip
    """The questions behind what all share, which is read once."""
    if not cut.own:
        return
    mesh, ways = made.how.mesh, data_ways(made.how.mesh)
    shared = start(made, [cut.shared] * ways, rows=ways).read
    rows, waiting = padded_rows(batch_size, ways), list[tuple[list[int], Array]]()
    order = sorted(range(len(cut.own)), key=lambda number: len(cut.own[number]))
    for width, alike in itertools.groupby(order, lambda number: bucket_list(len(cut.own[number]))[-1]):
        for numbers in chunks(list(alike), rows):
            tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
            for row, number in enumerate(numbers):
                tokens[row, : len(cut.own[number])], lengths[row] = cut.own[number], len(cut.own[number])
            both = placed(tokens, mesh, ("batch", "tokens")), placed(lengths, mesh, ("batch",))
            waiting.append((numbers, _questions(made.how)(made.apart, shared, *both, letters)))
            if len(waiting) == WAITING:
                yield from _fetched(waiting, mesh)
                waiting = []
    yield from _fetched(waiting, mesh)


def _fetched(waiting: Sequence[tuple[list[int], Array]], mesh: Mesh | None) -> Iterator[tuple[list[int], np.ndarray]]:
    for numbers, logits in waiting:
        yield numbers, on_host(logits, mesh)[: len(numbers)]


@compiled_for
def _questions(how: How, params: DecodeParams, shared: Read, tokens: Array, lengths: Array, letters: Array) -> Array:
    """Letters' logits [B,4] of questions int[B,Q], of which lengths int[B] exist, behind what is kept of the shared
    tokens: of B rows each B / C read one of its C copies."""
    copies, size = shared.lengths.shape[0], tokens_kept(shared.kept)
    behind = Behind(shared.kept, jnp.broadcast_to(jnp.arange(size), (copies, size)), shared.lengths)
    places = jnp.arange(tokens.shape[1])
    real = places < lengths[:, None]
    positions = jnp.where(real, shared.lengths[0] + places, 0)
    hidden, _ = read_on(
        params, how.config, tokens, positions, (behind,), segments=real.astype(jnp.int32), mesh=how.mesh,
        dtype=how.dtype,
    )  # fmt: skip
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return _of_rows(how, params.rest, last, letters)


@compiled_for
def _letter_logits(how: How, rest: Params, last: Array, letters: Array) -> Array:
    """Logits [B,4] of four tokens behind hidden states [B,D]."""
    return _of_rows(how, rest, last, letters)


def _of_rows(how: How, rest: Params, last: Array, letters: Array) -> Array:
    """As `models.decode.next_logits`, of a few rows of the head."""
    kernel = head_kernel(rest, how.config)[letters].astype(last.dtype)
    wide = jnp.promote_types(last.dtype, jnp.float32)
    return soft_capped(jnp.einsum("bd,cd->bc", last, kernel, preferred_element_type=wide), how.config)
