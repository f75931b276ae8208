"""What a plan asks of every program, and what a program is told of its situation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from fusion_jax.errors import InputError

Dtype = Literal["bfloat16", "float32"]
Start = Dtype  # of the weights that a stage starts from
BYTES = {"bfloat16": 2, "float32": 4, "stored": 2, "int8": 1, "": 0}  # files are planned as bfloat16


class Place(NamedTuple):
    """Where a program runs: the sizes of (data, fsdp, tensor) and the chips of the slice."""

    mesh: tuple[int, int, int]
    chips: int


class Situation(NamedTuple):
    """What the compiler and the estimate say of a program.

    bound: what takes the most time: "compute", "HBM bandwidth", "the link to the host" or "communication".
    room: bytes of HBM a chip that are free; temporaries: that the program takes; state_fits: whether what it is given
    fits alone. heads: key-value heads of the model, 0 for none.
    """

    bound: str
    room: int
    temporaries: int
    state_fits: bool
    place: Place
    heads: int


SMALLER = "Try fewer or shorter rows, mesh-tensor, or a larger slice"


class Program(Protocol):
    """A program of a run, as plain values. What is traced, FLOPs and tokens are those of one call over all chips.

    What a program does not say itself is as here: no kernel, nothing that is held beside it, no advice of its own.
    """

    needs_model: ClassVar[bool]
    """Whether it computes with a model; without, `config` is None in all below."""

    def check(self, ways: int) -> None:
        """Refuse a mesh of so many data ways.

        Raises:
          InputError: the rows do not divide over them.
        """

    def trace(self, config: Any, mesh: Mesh) -> jax.stages.Traced:
        """The function that the run itself calls, with shapes and shardings in the place of arrays; lowered for the
        mesh's devices or, by `lower(lowering_platforms=("cuda",))`, for those of another kind."""

    def flops(self, config: Any) -> float:
        """Useful FLOPs: what the mathematics needs, whatever is recomputed."""

    def tokens_computed(self) -> int:
        """Tokens that it reads or, for decoding, writes."""

    def in_turn(self) -> int:
        """Tokens of a row that it writes one after the other; 0: none."""
        return 0

    def kernel_share(self, config: Any) -> float:
        """What its attention kernel computes over half of the square of its tokens."""
        return 1.0

    def weights_beside(self, weights: int, place: Place) -> int:
        """Bytes a chip of `weights` parameters that the run holds besides the program's own arguments."""
        return 0

    def advice(self, now: Situation) -> str:
        """What to try next where it fits; "" where there is no advice of its own."""
        return ""

    def smaller(self, now: Situation) -> str:
        """What to try where it does not fit."""
        return SMALLER


def check_rows(rows: int, ways: int) -> None:
    """Refuse rows that do not divide over the chips."""
    if rows % ways:
        raise InputError(
            f"{rows} rows do not divide over {ways} chips", field="examples", cure=f"Take a multiple of {ways}"
        )
