"""What a plan is asked for: a program of a model on a slice, as plain data, so that it travels as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.lora import Lora
from fusion_jax.models.parameters import check_heads
from fusion_jax.plan.programs import KINDS, Program, TrainStep
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sharding import data_ways, make_mesh, tensor_shards


@dataclass(frozen=True)
class Request:
    """A program of a model on a slice. model: config.json's values; mesh: sizes of (data, fsdp, tensor)."""

    slice: str
    model: dict[str, Any]
    program: Program
    mesh: tuple[int, int, int] = (1, -1, 1)

    @property
    def config(self) -> ModelConfig | None:
        """The model, for programs that compute with one."""
        return config_from_hf(self.model) if self.program.needs_model else None


def useful_flops(request: Request) -> float:
    """FLOPs of one call of the program over all chips."""
    return request.program.flops(request.config)


def tokens_of(request: Request) -> int:
    """Tokens that one call of the program reads or, for decoding, writes, over all chips."""
    return request.program.tokens_computed()


def lower(request: Request, devices: list[Any]) -> tuple[jax.stages.Lowered, list[Any]]:
    """The program of a request, lowered for `devices` of a topology, and these in the order of its partitions.

    Raises:
      InputError: the mesh, the rows or the heads do not fit the devices.
    """
    config = request.config
    mesh = make_mesh(*((1, -1, 1) if config is None else request.mesh), devices=devices)
    if config is not None:
        check_heads(config, tensor_shards(mesh), mesh.size, "mesh-tensor")
        request.program.check(data_ways(mesh))
    return request.program.trace(config, mesh).lower(), list(mesh.devices.flat)


def to_json(request: Request) -> dict[str, Any]:
    """A request as plain values."""
    return dataclasses.asdict(request) | {"kind": type(request.program).__name__}


def from_json(values: dict[str, Any]) -> Request:
    """The inverse of `to_json`."""
    data, fsdp, tensor = values["mesh"]
    program = KINDS[values["kind"]](**_fields(values["program"]))
    return Request(values["slice"], values["model"], program, (data, fsdp, tensor))


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    """A program's fields, records where they are some."""
    program = dict(values)
    if "shape" in program:
        program["shape"] = tuple(program["shape"])
    if "sampler" in program:
        program["sampler"] = Sampler(**program["sampler"])
    if program.get("lora"):
        program["lora"] = Lora(**program["lora"] | {"modules": tuple(program["lora"]["modules"])})
    if "student" in program:
        program["student"] = TrainStep(**_fields(program["student"]))
    return program
