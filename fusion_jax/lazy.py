"""Sequences whose items are made or read when they are asked for, so that a corpus need not fit into memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")


class Indexed(Sequence[Item], Generic[Item]):
    """Items by number: `_at` gives item i, counted from 0, and is called anew each time."""

    @abstractmethod
    def _at(self, i: int) -> Item: ...

    def some(self, wanted: Sequence[int]) -> list[Item]:
        """The items of these numbers, in their order; a sequence that computes its items computes these together."""
        return [self._at(i) for i in wanted]

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return self.some(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._at(index % len(self))

    def __iter__(self) -> Iterator[Item]:
        return (self._at(i) for i in range(len(self)))


class Lazy(Indexed[Item]):
    """`count` items, made by a function.

    together: makes several, as `Indexed.some`, where that costs less than one by one.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int], Item],
        together: Callable[[Sequence[int]], list[Item]] | None = None,
    ) -> None:
        self._count, self._make, self._together = count, make, together

    def __len__(self) -> int:
        return self._count

    def _at(self, i: int) -> Item:
        return self._make(i)

    def some(self, wanted: Sequence[int]) -> list[Item]:
        return super().some(wanted) if self._together is None else self._together(wanted)
