"""Pruned models with Llama's body as Nemotron-NAS, the one form with absent blocks that several servers read.

Two of them read some of it wrongly. llama.cpp leaves out all of a layer without a feed-forward, its attention too
(src/models/deci.cpp: `if (n_ff == 0) continue`). vLLM begins the residual stream in the attention of the first layer
(vllm/model_executor/models/nemotron_nas.py: `residual is None`), and fails where that is gone. `misread` names the
layers; zeros in the place of their blocks compute the same everywhere, and are small.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.families.nemotron_nas import MULTIPLE, from_hf, to_hf
from fusion_jax.models.families.pruned import stack_of

CURE = "Export another form, or a model with Llama's body"


def misread(config: ModelConfig) -> dict[str, list[int]]:
    """Readers that compute something else than this model, or fail, and the layers that they do not read rightly."""
    every = [stack for stack in config.decoder for _ in range(stack.layers)]
    return {
        "llama.cpp": [number for number, stack in enumerate(every) if stack.attends and "mlp" in stack.lacks],
        "vLLM": [0] if not every[0].attends else [],
    }


def from_llama(config: ModelConfig, filled: bool = False) -> ModelConfig:
    """The architecture of a model with Llama's body, whole or without some blocks, as one of this family. Layers that
    have no block are gone. Where q, k, v or o have biases, all four have some here.

    Args:
      filled: where `misread` names a layer, it has the block that it lacks after all, to be filled with zeros: a
        feed-forward of the least width, or the first attention.

    Raises:
      InputError: something that config.json cannot say, or that a reader would not take from it; names it.
    """
    layers = [stack_of(one, [i]) for one in config.decoder if not one.empty for i in range(one.layers)]
    biases = "qkvo" if any(one.attention.biases for one in layers) else ""
    layers = [replace(one, attention=replace(one.attention, biases=biases)) for one in layers]
    if filled:
        thin = [replace(one, lacks=frozenset(), mlp=replace(one.mlp, width=MULTIPLE)) for one in layers]
        layers = [full if one.attends and "mlp" in one.lacks else one for one, full in zip(layers, thin, strict=True)]
        layers = [replace(one, lacks=one.lacks - {"attention"}) for one in layers[:1]] + layers[1:]
    wanted = replace(config, model_type="nemotron-nas", decoder=tuple(map(_own, layers)))
    _check(wanted)
    return from_hf(Fields(to_hf(wanted)))


def _check(config: ModelConfig) -> None:
    """Refuse what config.json has no words for, and what is not read from it everywhere; widths are left aside."""
    problem = "is a classifier" if config.head.labels else "" if config.decoder else "no layer would be left"
    if any(rope.share != 1 for rope in config.positions.ropes):
        problem = "nemotron-nas has no words for heads that are rotated in part"
    if not problem:
        alike = tuple(replace(one, mlp=replace(one.mlp, width=MULTIPLE)) for one in config.decoder)
        config = replace(config, decoder=alike)
        read = from_hf(Fields(to_hf(config)))
        layers = tuple(replace(one, layers=1) for one in read.decoder for _ in range(one.layers))
        differing = _differing(config, replace(read, decoder=layers))
        problem = f"nemotron-nas has no words for {differing}" if differing else ""
    if not problem and config.decoder[0].mlp.activation != "silu":
        problem = f"llama.cpp reads nemotron-nas with silu; this has {config.decoder[0].mlp.activation}"
    kinds = {rope.kind for rope in config.positions.ropes}
    if not problem and not kinds <= {"default", "llama3"}:
        problem = f"llama.cpp reads nemotron-nas without rotary scaling {', '.join(kinds)}"
    if problem:
        raise InputError(problem, field="model_type", cure=CURE)


def _own(stack: Stack) -> Stack:
    """A stack in which the parts that it lacks are described by nothing but their absence."""
    attention = stack.attention if stack.attends else replace(stack.attention, kv_heads=stack.attention.heads)
    return replace(
        stack, attention=attention, mlp=replace(stack.mlp, width=MULTIPLE) if "mlp" in stack.lacks else stack.mlp
    )  # fmt: skip


def _differing(one: Any, other: Any, name: str = "") -> str:
    """The first part that two configurations differ in, with what the first has there; empty where they are equal."""
    if one == other:
        return ""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return next(filter(None, (_differing(*pair, name) for pair in pairs)))
    if type(one) is not type(other) or not is_dataclass(one):
        return f"{name} {one!r}"
    found = (_differing(getattr(one, f.name), getattr(other, f.name), f.name) for f in fields(one))
    return next(filter(None, found))
