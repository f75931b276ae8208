"""Results that a process keeps: equal arguments give the same object, and what was compiled for it is found again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
MOST = 16  # of each function: more than a run has stages of different kinds


def kept(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A pure function of hashable arguments that remembers its last `MOST` results."""
    return functools.lru_cache(MOST)(make)  # type: ignore[return-value]
