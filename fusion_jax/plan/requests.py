"""The programs of a run as requests that a plan can be asked for: plain data, so that they travel as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fusion_jax.ops.kernels import Kernel
from fusion_jax.ops.remat import Remat

ObjectiveName = Literal["sft", "dpo", "wrpo", "fusion"]
Dtype = Literal["bfloat16", "float32"]
Start = Dtype  # of the weights that a stage starts from
GROUPS: dict[ObjectiveName, int] = {"sft": 1, "dpo": 2, "wrpo": 3, "fusion": 1}


@dataclass(frozen=True)
class TrainStep:
    """One optimizer step. examples: of a micro-batch, over all chips; prompt: tokens that an example's rows share;
    tokens: of each row behind them; k: entries of a fusion target; reference: "none" for losses that read none; dtype:
    of the computation; start: dtype of the weights that training starts from, which the run keeps."""

    objective: ObjectiveName
    examples: int
    tokens: int
    prompt: int = 0
    micro_batches: int = 1
    reference: Literal["none", "stored", "in-step"] = "none"
    remat: Remat = "full"
    shared_prompt: bool = True
    k: int = 10
    attention: Kernel = "splash"
    dtype: Dtype = "bfloat16"
    start: Start = "bfloat16"


@dataclass(frozen=True)
class ScoreStep:
    """Reference log-probs of a micro-batch of examples of `groups` rows; start: dtype of the weights."""

    examples: int
    tokens: int
    groups: int
    prompt: int = 0
    shared_prompt: bool = True
    attention: Kernel = "splash"
    dtype: Dtype = "bfloat16"
    start: Start = "bfloat16"


@dataclass(frozen=True)
class TeacherStep:
    """The k most probable entries of every token of `rows` texts."""

    rows: int
    tokens: int
    k: int = 10
    attention: Kernel = "splash"


@dataclass(frozen=True)
class Prefill:
    """Keys and values of `rows` prompts of `prompt` tokens, as generation reads them; kept: dtype of the weights that
    the run holds on its training mesh besides, "" for none."""

    rows: int
    prompt: int
    kept: Literal["", Start] = ""


@dataclass(frozen=True)
class Decode:
    """`capacity` more tokens of `samples` continuations of each of `rows` prompts: the loop that grows all rows; kept:
    see `Prefill`."""

    rows: int
    prompt: int
    capacity: int
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    kept: Literal["", Start] = ""


@dataclass(frozen=True)
class MergeTensor:
    """One tensor of several models by a method of `fusion_jax.merge`, split over all chips."""

    method: str
    models: int
    shape: tuple[int, ...]


Program = TrainStep | ScoreStep | TeacherStep | Prefill | Decode | MergeTensor
KINDS: dict[str, type[Program]] = {
    kind.__name__: kind for kind in (TrainStep, ScoreStep, TeacherStep, Prefill, Decode, MergeTensor)
}


@dataclass(frozen=True)
class Request:
    """A program of a model on a slice. model: config.json's values; mesh: sizes of (data, fsdp, tensor)."""

    slice: str
    model: dict[str, Any]
    program: Program
    mesh: tuple[int, int, int] = (1, -1, 1)


def to_json(request: Request) -> dict[str, Any]:
    """A request as plain values."""
    return dataclasses.asdict(request) | {"kind": type(request.program).__name__}


def from_json(values: dict[str, Any]) -> Request:
    """The inverse of `to_json`."""
    program = dict(values["program"])
    if "shape" in program:
        program["shape"] = tuple(program["shape"])
    data, fsdp, tensor = values["mesh"]
    return Request(values["slice"], values["model"], KINDS[values["kind"]](**program), (data, fsdp, tensor))
