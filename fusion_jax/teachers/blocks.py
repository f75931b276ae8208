"""Rows of some texts as one block of bytes, which takes little room and is read back for all of them at once.

A block is its checksum, four numbers, and planes. Numbers of b bytes are b planes: all lowest bytes, then all second
ones and so on; one whose bytes are all the same is that byte alone. Of ids and log-probs the low bytes are noise and
the high ones repeat, so that zstd, by which array_record packs its records, makes the high planes small and only copies
the low ones. Log-probs that fall, as they should, are kept as the steps of their float16 patterns, which are small. A
token's offsets are kept as the gap behind the token before and its width.

In 8 bits, an entry behind the first is one of the two nearest of 256 levels: level c is log p = S log(1 - c / C), with
S = 5 and C such that level 255 is -30. Steps between levels are 0.02 nats where p is 1 and grow with p^(-1/5), so that
what an entry adds to a KL divergence, p * step^2 / 24 on average, stays even over the row. The first entry is float16
and takes up the share p / (p + tail) of the mass that the others gain or lose, which costs least: where hardly any mass
is outside the row, all of it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from fusion_jax.data.documents import TeacherRow

LogProbs = Literal["float16", "8bit"]
ENTRIES = 2**18  # of a block, which whole texts fill: so many that what a block costs by itself does not count
HEAD = struct.Struct("<IIII")  # texts, tokens, k, whether log-probs are kept as steps
TINY = np.finfo(np.float64).tiny
Plane = np.ndarray | int  # uint8[n], or the byte that all of it is

DTYPES = {
    "ids": np.int32, "offsets": np.int32, "topk_ids": np.int32, "topk_logprobs": np.float16, "logsumexp": np.float32,
    "tail": np.float32, "metric": np.float32,
}  # fmt: skip
"""Of the fields of a `TeacherRow`, as they are stored and read."""


def _levels(scale: float = 5.0, lowest: float = 30.0) -> np.ndarray:
    """float16[256], falling from 0: the log-probs that 8 bits hold."""
    end = 255 / -np.expm1(-lowest / scale)
    return (scale * np.log1p(-np.arange(256) / end)).astype(np.float16)


def _bounds(levels: np.ndarray) -> np.ndarray:
    """float32[255], rising: -log p that lies between the level above and the one below, so that masses stay what they
    are on the whole: step^2 / 10 above the middle, since of a step's entries more are in its lower half; and, as one of
    20 float16 numbers lies in the middle, a little aside of it, at one level above and at the next below."""
    levels = levels.astype(np.float64)
    steps, aside = -np.diff(levels), 1 + 1e-4 * (-1.0) ** np.arange(255)  # a fifth of what is between float16 numbers
    return ((-(levels[:-1] + levels[1:]) / 2 - np.minimum(steps**2 / 10, steps / 4)) * aside).astype(np.float32)


LEVELS = _levels()
BOUNDS = _bounds(LEVELS)


class Block(NamedTuple):
    """Texts of a block. bounds: int[texts+1], where each begins and ends; rows: of all of them behind each other,
    metric[texts,2]."""

    bounds: np.ndarray
    rows: TeacherRow

    def row(self, place: int) -> TeacherRow:
        """The row of text `place` of the block."""
        part = slice(int(self.bounds[place]), int(self.bounds[place + 1]))
        ids, offsets, topk_ids, topk_logprobs, logsumexp, tail, metric = self.rows
        return TeacherRow(
            ids[part], offsets[part], topk_ids[part], topk_logprobs[part], logsumexp[part], tail[part], metric[place]
        )


def spans(sizes: Sequence[int], k: int) -> list[range]:
    """Which texts each block of a part holds: as many as have `ENTRIES` entries together, at least one.

    sizes: tokens of the texts.
    """
    out, start, tokens = [], 0, 0
    for number, size in enumerate(sizes):
        if number > start and (tokens + size) * k > ENTRIES:
            out.append(range(start, number))
            start, tokens = number, 0
        tokens += size
    return [*out, range(start, len(sizes))] if len(sizes) else out


class Damaged(ValueError):
    """A block is not as it was written, or stands in another place."""


def falls(logprobs: np.ndarray) -> bool:
    """Whether rows of log-probs [n,k] fall and are none above 0 but the first, which rounding may lift: what 8 bits
    can hold."""
    return bool((logprobs[:, 1:] <= np.minimum(logprobs[:, :-1], 0)).all())


def rounding(logprobs: np.ndarray, log_probs: LogProbs) -> np.ndarray:
    """float32, by how much keeping may change each of these log-probs, without what float16 rounds; infinite below the
    lowest level."""
    if log_probs == "float16":
        return np.zeros(logprobs.shape, np.float32)
    halves = np.append(-np.diff(LEVELS.astype(np.float32), prepend=0), np.inf)
    halves *= 0.5 + np.minimum(halves / 10, 0.25)
    place = np.searchsorted(-LEVELS, -logprobs)
    out = np.maximum(halves[place], halves[np.where(place < 255, place + 1, place)])
    weights = np.exp(logprobs[:, 1:].astype(np.float32) - logprobs[:, :1])
    out[:, 0] = (weights * np.where(weights > 0, out[:, 1:], 0)).sum(-1)  # which the others lose together, at most
    return out


def encode(rows: Sequence[TeacherRow], log_probs: LogProbs, start: int) -> bytes:
    """A block of rows with the dtypes of `DTYPES` and the same k; in 8 bits their log-probs must fall (`falls`).

    start: the number of the first one's record in the store, from 0, without which the block is not read.
    """
    joined = {name: np.concatenate([getattr(row, name) for row in rows]) for name in TeacherRow._fields}
    starts, ends = joined["offsets"].T
    before = np.append(np.zeros(1, np.int32), ends[:-1])[: len(ends)]
    bits = joined["topk_logprobs"].view(np.uint16)
    numbers = [joined["ids"], starts - before, ends - starts, joined["logsumexp"], joined["tail"]]
    stepped = log_probs == "8bit" or bool((bits[:, 1:] >= bits[:, :-1]).all())
    if log_probs == "8bit":
        first, bits = _eight_bits(bits.view(np.float16))
        numbers.append(first.astype(np.uint32))
    elif stepped:
        bits = _steps(bits)
    sizes = np.asarray([len(row.ids) for row in rows], np.uint32)
    arrays = {
        "topk_ids": joined["topk_ids"], "topk_logprobs": bits, "tokens": np.stack([n.view(np.uint32) for n in numbers]),
        "texts": np.append(sizes, joined["metric"].view(np.uint32)),
    }  # fmt: skip
    tokens, k = bits.shape
    flags, planes = [], []
    for name, (dtype, _) in _fields(len(rows), tokens, k, log_probs).items():
        for plane in _planes(arrays[name], dtype):
            raw = plane.tobytes()
            same = raw.count(raw[:1]) == len(raw) > 0
            flags.append(bytes((same, raw[0] if same else 0)))
            planes.append(b"" if same else raw)
    body = b"".join((HEAD.pack(len(rows), tokens, k, stepped), *flags, *planes))
    return xxhash.xxh3_64_digest(body, start) + body


def decode(block: bytes, log_probs: LogProbs, start: int) -> Block:
    """What `encode` made; its arrays are read-only.

    Raises:
      Damaged: it is something else.
    """
    body = memoryview(block)[8:]
    if len(body) < HEAD.size or xxhash.xxh3_64_digest(body, start) != block[:8]:
        raise Damaged("its checksum differs")
    texts, tokens, k, stepped = HEAD.unpack_from(body)
    fields = _fields(texts, tokens, k, log_probs)
    flags, place = HEAD.size, HEAD.size + 2 * sum(dtype.itemsize for dtype, _ in fields.values())
    found = {}
    for name, (dtype, shape) in fields.items():
        count, planes = math.prod(shape), list[Plane]()
        for _ in range(dtype.itemsize):
            same, value = body[flags : flags + 2]
            planes.append(value if same else np.frombuffer(body, np.uint8, count, place))
            flags, place = flags + 2, place + (0 if same else count)
        found[name] = _joined(planes, count, dtype).reshape(shape)
    ids, gaps, widths, logsumexp, tail, *first = found["tokens"]
    ends = np.cumsum(gaps + widths, dtype=np.uint32)
    offsets = np.stack((ends - widths, ends), 1).view(np.int32)
    sizes, metric = found["texts"][:texts], found["texts"][texts:].view(np.float32).reshape(texts, 2)
    logprobs = _add_up(found["topk_logprobs"]) if stepped else found["topk_logprobs"]
    logprobs = _of_levels(first[0].astype(np.uint16), logprobs) if first else logprobs.view(np.float16)
    rows = TeacherRow(
        ids.view(np.int32), offsets, found["topk_ids"].view(np.int32), logprobs, logsumexp.view(np.float32),
        tail.view(np.float32), metric,
    )  # fmt: skip
    for array in rows:
        array.flags.writeable = False
    return Block(np.append(0, np.cumsum(sizes, dtype=np.int64)), rows)


def _fields(texts: int, tokens: int, k: int, log_probs: LogProbs) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """The arrays of a block in their order: dtype and shape.

    tokens: their ids, gaps, widths, logsumexp, tails and, of 8 bits, first log-probs, a row each; texts: their sizes,
    then their metrics.
    """
    word, half, byte = map(np.dtype, ("<u4", "<u2", "u1"))
    eight = log_probs == "8bit"
    return {
        "topk_ids": (word, (tokens, k)), "topk_logprobs": (byte if eight else half, (tokens, k)),
        "tokens": (word, (5 + eight, tokens)), "texts": (word, (3 * texts,)),
    }  # fmt: skip


def _planes(array: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Numbers as planes of bytes, the lowest first."""
    raw = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).reshape(-1, dtype.itemsize)
    return (raw[:, i] for i in range(dtype.itemsize))


def _joined(planes: Sequence[Plane], count: int, dtype: np.dtype) -> np.ndarray:
    """The numbers of planes, in an array of their own."""
    if dtype.itemsize == 1:
        return np.full(count, planes[0], np.uint8)
    low = _pairs(planes[0], planes[1], count)
    if dtype.itemsize == 2:
        return low.view(dtype)
    out = low.astype(np.uint32)
    if any(isinstance(plane, np.ndarray) or plane for plane in planes[2:]):
        high = _pairs(planes[2], planes[3], count).astype(np.uint32)
        high <<= 16
        out |= high
    return out.view(dtype)


def _pairs(low: Plane, high: Plane, count: int) -> np.ndarray:
    """uint16[count] of two planes."""
    out = high.astype(np.uint16) if isinstance(high, np.ndarray) else np.full(count, high, np.uint16)
    out <<= 8
    out |= low if isinstance(low, np.ndarray) else np.uint16(low)
    return out


def _steps(rows: np.ndarray) -> np.ndarray:
    """The first number of each row, and how much each other one stands above the one before."""
    return np.diff(rows, axis=1, prepend=rows.dtype.type(0))


def _add_up(steps: np.ndarray) -> np.ndarray:
    """What `_steps` made the steps [n,k] of, uint8 or uint16, in their place. No sum is too large for its bits.

    Several numbers are added up in one word: x + (x << b) has the sums of two, (x << 2b) added those of four.
    """
    bits, k = 8 * steps.itemsize, steps.shape[1]
    if k < 16 or k * bits % 64:
        for j in range(1, k):
            steps[:, j] += steps[:, j - 1]
        return steps
    words = steps.view(np.uint64)
    for shift in range(6):
        if bits << shift < 64:
            words += words << np.uint64(bits << shift)
    last = words >> np.uint64(64 - bits)
    before = np.cumsum(last, axis=1)
    before -= last
    before *= np.uint64(sum(1 << place for place in range(0, 64, bits)))  # in every number of the word
    words += before
    return steps


def _eight_bits(logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits of each row's first entry, uint16[n], and how many levels each other one stands below the one before,
    uint8[n,k]; 0 for the first, and the second's own level."""
    codes = np.searchsorted(BOUNDS, -logprobs.astype(np.float32)).astype(np.uint8)
    codes[:, 0] = 0
    kept = np.minimum(LEVELS[codes], logprobs[:, :1])
    kept[:, 0] = logprobs[:, 0]
    given, found = (np.exp(x.astype(np.float64)) for x in (logprobs, kept))
    outside = np.maximum(1 - given.sum(-1), 0)
    top = given[:, 0] + (given - found).sum(-1) * given[:, 0] / (given[:, 0] + outside + TINY)
    first = np.log(np.maximum(top, TINY)).astype(np.float16)
    first = np.where(top > TINY, np.maximum(first, kept[:, 1:2].max(-1, initial=-np.inf)), kept[:, 0])
    return first.astype(np.float16).view(np.uint16), _steps(codes)


def _of_levels(first: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """float16[n,k] of levels uint8[n,k] and the first entries' bits. No entry lies above the first."""
    bits = np.take(LEVELS.view(np.uint16), levels)
    np.maximum(bits, first[:, None], out=bits)  # below 0, the bits of the lower number are the higher ones
    bits[:, 0] = first
    return bits.view(np.float16)
