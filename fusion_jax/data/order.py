"""Which examples an optimizer step sees: a pure function of (seed, step), the same on any number of hosts."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.lazy import Indexed, Lazy

if TYPE_CHECKING:
    import grain

    from fusion_jax.data.records import Row

T = TypeVar("T")


def num_steps(examples: int, batch_size: int, epochs: float) -> int:
    """N = ceil(epochs * floor(examples / batch_size)); trailing examples of an epoch are dropped.

    Raises:
      InputError: no example, or not one whole batch.
    """
    if examples == 0:
        raise InputError("0 examples are left to train on", cure="Give data of which something can be used")
    per_epoch = examples // batch_size
    if per_epoch == 0:
        raise InputError(
            f"{examples} examples do not fill one batch of {batch_size}", field="batch_size",
            cure="Give more data or a smaller batch size",
        )  # fmt: skip
    return math.ceil(epochs * per_epoch)


class _Epochs:
    """Batch `step` of the endless run: shuffled by (seed, epoch), lengths close together within a window of batches."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, steps: int, window: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._steps, self._window = steps, window
        self._cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, within = divmod(int(step), len(self._lengths) // self._batch_size)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._epoch(epoch))
        return self._cached[1][within]

    def __repr__(self) -> str:
        return (
            f"Epochs(n={len(self._lengths)}, batch_size={self._batch_size}, seed={self._seed}, window={self._window})"
        )

    def _epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        batches = len(self._lengths) // self._batch_size
        order = rng.permutation(len(self._lengths))[: batches * self._batch_size]
        size = self._batch_size * self._window
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        close = np.concatenate([w[np.argsort(self._lengths[w], kind="stable")] for w in windows])
        return close.reshape(batches, self._batch_size)[rng.permutation(batches)]


def batch_order(
    lengths: Sequence[int], *, batch_size: int, seed: int, epochs: float, bucket_window: int = 8
) -> grain.MapDataset:
    """Index arrays int[batch_size], one a step, with random access.

    Args:
      lengths: length of every example in tokens.
      bucket_window: examples are sorted by length within this many batches, so that batches need little padding; 1
        is a plain shuffle.

    Raises:
      InputError: not one whole batch, or a negative seed.
    """
    import grain

    _check_seed(seed)
    steps = num_steps(len(lengths), batch_size, epochs)
    source = _Epochs(np.asarray(lengths), batch_size, seed, steps, max(bucket_window, 1))
    return grain.MapDataset.source(source)


class Stages(Indexed[np.ndarray]):
    """Batches of several stages, one stage behind the other, each with random access."""

    def __init__(self, stages: Sequence[Sequence[np.ndarray]]) -> None:
        self.stages, self.ends = stages, list(itertools.accumulate(map(len, stages)))

    def __len__(self) -> int:
        return self.ends[-1]

    def _at(self, i: int) -> np.ndarray:
        stage = bisect.bisect_right(self.ends, i)
        return np.asarray(self.stages[stage][i - (self.ends[stage] - len(self.stages[stage]))])


def grouped_order(
    groups: np.ndarray, lengths: Sequence[int], *, batch_size: int, seed: int, steps: int, bucket_window: int = 8
) -> Sequence[np.ndarray]:
    """As `batch_order`, of so many steps and of groups of examples that go into one batch together, one behind the
    other.

    Args:
      groups: int[n,g], the examples of each group. lengths: of every example. batch_size: examples, a multiple of g.
    """
    longest = np.asarray(lengths)[groups].max(1)
    if batch_size % groups.shape[1]:
        problem = f"{batch_size} is no multiple of the {groups.shape[1]} examples that go together"
        raise InputError(problem, field="batch_size", cure="Give an even number")
    size = batch_size // groups.shape[1]
    num_steps(len(groups), size, 1)  # refuses fewer than a batch
    order = _Epochs(longest, size, seed, steps, max(bucket_window, 1))
    return Lazy(steps, lambda step: groups[order[step]].reshape(-1))


def split_sizes(count: int, share: float) -> tuple[int, int]:
    """How many of `count` items are a share of them, and how many are the others."""
    size = round(count * share)
    return size, count - size


def split_indices(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random part of `share` and the rest, each in ascending order (WRPO stage 5).

    Raises:
      InputError: a negative seed.
    """
    _check_seed(seed)
    order = np.random.default_rng(seed).permutation(count)
    size, _ = split_sizes(count, share)
    return np.sort(order[:size]), np.sort(order[size:])


def split(items: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """A share of the items drawn by the seed, and the others, both in their order; see `split_indices`."""
    first, second = split_indices(len(items), share, seed)
    return [items[i] for i in first], [items[i] for i in second]


def split_by_name(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """As `split`, of rows; those of one name stay together."""
    return split_together(rows, [row.name for row in rows], share, seed)


def split_together(rows: Sequence[T], keys: Sequence[str], share: float, seed: int) -> tuple[list[T], list[T]]:
    """As `split`; rows with the same key stay together."""
    first = set(split(list(dict.fromkeys(keys)), share, seed)[0])
    both = list(zip(rows, keys, strict=True))
    return [row for row, key in both if key in first], [row for row, key in both if key not in first]


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"{quoted(seed)} is out of range", field="seed", cure="Give 0 or more")
