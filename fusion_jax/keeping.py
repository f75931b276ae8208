"""Results that a process keeps: equal arguments give the same object, and what was compiled for it is found again.

Arguments have to be hashable; a default and the same value given count as two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
MOST, PROGRAMS = 64, 8


def kept(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A pure function that remembers its last `MOST` results."""
    return functools.lru_cache(MOST)(make)  # type: ignore[return-value]


def kept_programs(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that gives jitted ones, whose programs take the devices' memory: it remembers the last `PROGRAMS`."""
    return functools.lru_cache(PROGRAMS)(make)  # type: ignore[return-value]
