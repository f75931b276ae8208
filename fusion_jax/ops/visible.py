"""The one question that is asked of attention: which keys does each query of a row see?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visible:
    """What each query of a row of T tokens sees: itself and the keys before it, of its segment, on the way from the
    row's start through its own branch, that are nearer than the window.

    Distances are differences of `positions`, whatever lies between two tokens in the row.

    positions: int[B,T], or int[1,T] of rows without context whose positions are the same; within a segment, and from a
      prompt into each of its continuations, they grow by one a token.
    segments: int[B,T]; None: one segment. Rows with branches have none.
    prompt_lengths: int[B], how many of the prompt's tokens exist, for rows with branches.
    window: how many keys a query sees, itself included; it may be traced; 0 or, known beforehand, None: no limit.
    windows: the values that `window` takes over the layers of a program. Kernels that make their masks before the data
      are known make one for each.
    branches: (size, n): a row is a prompt of `size` tokens and n continuations of equal width; None: a row is one text.
    causal: False: a query also sees the keys behind it; a window then limits the distance on both sides.
    """

    positions: Array
    segments: Array | None = None
    prompt_lengths: Array | None = None
    window: Array | int | None = None
    windows: tuple[int, ...] = field(default=(), metadata={"static": True})
    branches: tuple[int, int] | None = field(default=None, metadata={"static": True})
    causal: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        if (self.branches is None) != (self.prompt_lengths is None):
            raise ValueError("branches and prompt_lengths belong together")
        if self.branches is not None and (self.segments is not None or not self.causal):
            raise ValueError("rows that share a prompt have no segments and are causal")

    def of_layer(self, window: Array | int | None, windows: tuple[int, ...], causal: bool) -> Visible:
        """The same rows in a layer with this window, one of a stack's `windows`."""
        unlimited = not any(windows) or (isinstance(window, int) and window == 0)
        return replace(self, window=None if unlimited else window, windows=windows, causal=causal)


class ContextPart(NamedTuple):
    """Keys and values that rows attend to besides their own: a prompt's cache, or tokens generated before.

    k: [C,K,P,h]; v: [C,K,P,n]; positions: int[C,P]; lengths: int[C], how many of the P entries exist. B rows share
    C = B / repeat entries: row b reads entry b // repeat. seen: bool[B,P], which of the P a row sees; None: all.
    """

    k: Any
    v: Any
    positions: Array
    lengths: Array
    seen: Array | None = None
