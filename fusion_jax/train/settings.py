"""How a stage trains, and on what: settings, and the mesh, dtype and kernels that they mean on these devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.data.order import num_steps
from fusion_jax.errors import InputError
from fusion_jax.models.compute import Compute
from fusion_jax.models.lora import Lora
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS, CHUNK_ELEMENTS_ACCELERATOR
from fusion_jax.ops.remat import Remat
from fusion_jax.options import Names
from fusion_jax.settings import bounded, seeded
from fusion_jax.sharding import data_ways, make_mesh
from fusion_jax.slices import compiler_options, compute_dtype
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class TrainSettings:
    """How a stage trains."""

    optimizer: OptimizerSettings = OptimizerSettings()
    epochs: float = 1.0
    """How often the data is gone through; may be a fraction."""
    batch_size: int = 128
    """Examples of an optimizer step, over all devices and micro-batches."""
    micro_batches: int = 8
    """Parts in which a batch is computed, one after the other: more take less memory."""
    seed: int = 42
    """Decides the order of the examples, and which of the zoo's problems a run without data takes."""
    bucket_window: int = 8
    """Batches among which examples are sorted by length, so that little of a batch is padding; 1: none."""
    log_every: int = 5
    """Steps from one line of metrics.jsonl to the next."""
    eval_every: int = 500
    """Steps from one evaluation on held-out examples to the next."""
    checkpoint_every: int = 500
    """Steps from one saved state to the next: what a kill loses at most."""
    best_of: int = 1
    """Of so many last states, `checkpoint_every` steps apart, the one with the lowest held-out loss is the result; 1:
    the last one, whatever its loss."""
    lora_rank: int = 0
    """Rank of the adapters (LoRA) that are trained in the place of the weights; 0: the weights."""
    lora_alpha: float = 16.0
    """Scale of the adapters, times the rank."""
    lora_target_modules: Names = ()
    """Linear modules that have adapters, by their Hugging Face names, such as q_proj; without, all of every layer."""
    reference: Literal["stored", "in-step"] = "stored"
    """Log-probs of the frozen reference: computed once and stored, or with a second copy of the weights."""
    shared_prompt: bool = True
    """Whether the responses of a preference example share the computation of their prompt."""
    pack_tokens: int = 0
    """Tokens of a row into which preference examples of uneven lengths are packed; 0: each response is a row."""
    router_weight: float = 0.0
    """Of a model with experts: weight of the term of the loss that keeps their routers from preferring some; published
    recipes take 0.001 to 0.02."""
    dropout: float = 0.0
    """Share of the numbers that are left out, in training, behind the embedding and each part of a layer."""
    source_dropout: float = 0.0
    """Share of an encoder's tokens whose vectors are left out in training."""
    source_noise: Literal["uniform", "normal"] = "uniform"
    """What decides that: uniform numbers, or normal ones, which leave out 0.212 for 0.2, as published for Alirector."""
    remat: Remat = "full"
    """What the backward pass keeps of a layer: everything (none); the residual stream (full), also the attention's
    outputs (attention) and inputs (qkv); the stream and the feed-forward's two factors (gated); the results of all wide
    matmuls (dots); the stream alone, in the host's memory (offload)."""
    attention: Literal["auto", "xla", "splash"] = "auto"
    """Attention kernel; auto is splash on TPU, but for windows that cut a shared prompt, and xla elsewhere."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers to compute in; auto is bfloat16 where the device multiplies it natively, else float32."""
    mesh_data: int = 1
    """Device groups that each hold all weights; -1: the devices that are left."""
    mesh_fsdp: int = -1
    """Devices over which weights and batches are split; -1: the devices that are left."""
    mesh_tensor: int = 1
    """Devices over which heads and feed-forward columns are split; -1: the devices that are left."""
    mesh_spare: int = 0
    """Devices, the last ones, that the mesh leaves to live teachers."""

    def __post_init__(self) -> None:
        bounded(self, "batch_size", "micro_batches", "bucket_window", least=1)
        bounded(self, "log_every", "eval_every", "checkpoint_every", "best_of", least=1)
        bounded(self, "epochs", above=0, most=1e6)
        bounded(self, "mesh_data", "mesh_fsdp", "mesh_tensor", least=-1)
        seeded(self, "seed")
        bounded(self, "mesh_spare", "pack_tokens", "router_weight", "lora_rank", least=0)
        bounded(self, "lora_alpha", above=0)
        bounded(self, "dropout", "source_dropout", least=0, below=1)
        if self.pack_tokens and (self.dropout or self.source_dropout):
            raise InputError("goes with rows of one example each", field="dropout", cure="Leave out pack_tokens")
        if not self.lora_rank and (self.lora_target_modules or self.lora_alpha != 16.0):
            field = "lora_target_modules" if self.lora_target_modules else "lora_alpha"
            raise InputError("is for adapters, and there is no lora_rank", field=field, cure="Give lora_rank, too")
        if self.best_of > 1 and self.checkpoint_every % self.eval_every:
            problem = f"is not a multiple of eval_every, {self.eval_every}: states would have no held-out loss"
            raise InputError(problem, field="checkpoint_every", cure="Change one of the two, or leave out best_of")
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"batch size {self.batch_size} is not a multiple of {self.micro_batches} micro-batches",
                field="batch_size", cure="Change one of the two",
            )  # fmt: skip

    @property
    def lora(self) -> Lora | None:
        """The adapters to train, None where the weights are."""
        return Lora(self.lora_rank, self.lora_alpha, self.lora_target_modules) if self.lora_rank else None


def compute_for(
    settings: TrainSettings, devices: Sequence[jax.Device] | None = None, *, option: str = "--train"
) -> Compute:
    """`compute_to_read` for a stage that trains.

    Raises:
      InputError: the mesh or the micro-batches do not fit the devices; names the setting behind `option`.
    """
    compute = compute_to_read(settings, devices, option=option)
    rows, ways = settings.batch_size // settings.micro_batches, data_ways(compute.mesh)
    if rows % ways:
        raise InputError(
            f"a micro-batch of {rows} examples does not divide over {ways} devices", field=f"{option}.batch-size",
            cure=f"Change {option}.batch-size or {option}.micro-batches, or give {option}.mesh-tensor some devices",
        )  # fmt: skip
    return compute


def compute_to_read(
    settings: TrainSettings, devices: Sequence[jax.Device] | None = None, *, option: str = "--train"
) -> Compute:
    """Mesh, dtype, kernels: bfloat16 where the device multiplies it natively, float32 on a CPU; splash attention on
    TPU; no mesh on one device. Batches that are only read may have any size: they are filled up.

    Args:
      devices: what to compute on; None: all, those of other hosts included.
      option: of the settings, for messages.

    Raises:
      InputError: the mesh does not fit the devices, the kernel is not for them.
    """
    dtype = compute_dtype() if settings.compute_dtype == "auto" else settings.compute_dtype
    mesh: Mesh | None = None
    devices = kept_devices(settings, devices, option=option)
    if len(devices) > 1:
        mesh = make_mesh(settings.mesh_data, settings.mesh_fsdp, settings.mesh_tensor, devices=devices)
    platform, kernel = devices[0].platform, settings.attention
    if kernel == "splash" and platform != "tpu":
        problem = f"is a kernel for TPU, the devices here are {platform}"
        raise InputError(problem, field=f"{option}.attention", cure="Set it to auto or xla")
    if kernel == "auto":
        kernel = "splash" if platform == "tpu" else "xla"
    logits = CHUNK_ELEMENTS if platform == "cpu" else CHUNK_ELEMENTS_ACCELERATOR
    options = tuple(compiler_options(devices[0].device_kind).items())
    return Compute(
        mesh, jnp.dtype(dtype), settings.remat, settings.shared_prompt, kernel, logits, options,
        settings.dropout, settings.source_dropout, settings.source_noise == "normal",
    )  # fmt: skip


def kept_devices(
    settings: TrainSettings, devices: Sequence[jax.Device] | None = None, *, option: str = "--train"
) -> Sequence[jax.Device]:
    """The devices of a stage's mesh: all but those that it leaves to others.

    Raises:
      InputError: none is left, or there are several hosts, of which some would have none.
    """
    devices = jax.devices() if devices is None else devices
    if not settings.mesh_spare:
        return devices
    field = f"{option}.mesh-spare"
    if len({device.process_index for device in devices}) > 1:
        raise InputError("is for one host", field=field, cure="Leave it at 0: teachers then share the mesh")
    if settings.mesh_spare >= len(devices):
        problem = f"{settings.mesh_spare} of {len(devices)} devices are left to others"
        raise InputError(problem, field=field, cure="Leave one at least")
    return devices[: -settings.mesh_spare]


def compute_of_teachers(settings: TrainSettings) -> Compute:
    """What live teachers are computed on: the devices that a stage's mesh leaves to them, or that mesh."""
    if not settings.mesh_spare:
        return compute_to_read(settings)
    alone = replace(settings, mesh_data=1, mesh_fsdp=-1, mesh_tensor=1, mesh_spare=0)
    devices = jax.devices()[len(kept_devices(settings)) :]
    return replace(compute_to_read(alone, devices), mesh=make_mesh(1, -1, 1, devices=devices))


def step_count(examples: int, settings: TrainSettings) -> int:
    """Optimizer steps of a run: the N of the learning-rate and fusion-coefficient schedules."""
    return num_steps(examples, settings.batch_size, settings.epochs)
