"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): W + alpha / r * A B beside frozen kernels.

Adapters are a tree of the kernels they belong to: {stack: {part: {"lora_a": [L, in, r], "lora_b": [L, r, out]}}}. Put
beside the kernels (`joined`), they are leaves of the parameters like others, and every forward pass takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import tensors_of
from fusion_jax.models.parameters import LORA, Specs, abstract_of, lora_specs, parameter_specs

Array = jax.Array
Params = dict[str, Any]
Path = tuple[str, ...]
NOT_LINEAR = ("router", "kv_up")  # parts whose kernels are read whole, not multiplied as they are


@dataclass(frozen=True)
class Lora:
    """rank: of A B. alpha: its scale times the rank. modules: which linear layers of the Hugging Face model have
    adapters, by their last names ("q_proj"); empty: all of every layer."""

    rank: int
    alpha: float
    modules: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: its settings, its parameters, the folder of the model that it was trained on."""

    lora: Lora
    params: Params
    base: str = ""


def adapted_modules(config: ModelConfig, lora: Lora, option: str = "lora_target_modules") -> dict[Path, list[str]]:
    """The linear layers that have adapters: path of the part -> its module in the Hugging Face model, layer by layer.

    Raises:
      InputError: a module that the model's layers do not have, that holds several parts in one tensor, or is one of
        experts or their router; names the option and what there is.
    """
    whole: dict[Path, list[str]] = {}
    others: set[str] = set()
    for tensor in tensors_of(config):
        if tensor.path[-1] != "kernel" or not tensor.index:
            continue
        module = tensor.name.removesuffix(".weight")
        if tensor.shape is None and len(tensor.index) == 1 and tensor.path[-2] not in NOT_LINEAR:
            whole.setdefault(tensor.path[:-1], []).append(module)
        else:
            others.add(_last(module))
    known = sorted({_last(modules[0]) for modules in whole.values()} - others)
    asked = set(lora.modules or (*known, *others))
    if asked & others:
        name = sorted(asked & others)[0]
        problem = f"'{name}' is several parts in one tensor, or of experts; no adapter is trained for it"
        raise InputError(problem, field=option, cure=f"Give some of {', '.join(known)}")
    if not asked <= set(known):
        problem = f"the layers have no linear module '{sorted(asked - set(known))[0]}'"
        raise InputError(problem, field=option, cure=f"Known: {', '.join(known)}")
    return {path: modules for path, modules in whole.items() if _last(modules[0]) in asked}


def check_lora(config: ModelConfig, lora: Lora, option: str = "lora") -> None:
    """Refuse adapters that a model cannot have; names the setting behind `option`, such as "--train.lora".

    Raises:
      InputError: see `adapted_modules`; a model with an encoder; a reward model, whose head has to learn, too.
    """
    joint = "-" if option.startswith("-") else "_"  # between the words of an option of the command line, or a setting
    problem = ""
    if config.encoder:
        problem = f"adapters are trained of decoders; {config.model_type} has an encoder"
    elif config.head.labels:
        problem = "a reward model's head has no adapter, and would stay as it is"
    if problem:
        raise InputError(problem, field=joint.join((option, "rank")), cure="Train it whole (rank 0)")
    adapted_modules(config, lora, joint.join((option, "target", "modules")))


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def adapter_specs(config: ModelConfig, lora: Lora) -> Specs:
    """The parameters of the adapters, as a nested dict of `ParamSpec`."""
    out: Specs = {}
    for path in adapted_modules(config, lora):
        spec: Any = parameter_specs(config)
        place = out
        for name in path:
            spec = spec[name]
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = lora_specs(spec["kernel"], lora.rank)
    return out


def abstract_adapters(config: ModelConfig, lora: Lora, mesh: Mesh | None = None) -> Params:
    """Shapes, dtypes (float32) and, with a mesh, shardings of the adapters; nothing is allocated."""
    return abstract_of(adapter_specs(config, lora), jnp.float32, mesh)


def init_adapters(config: ModelConfig, lora: Lora, seed: int, mesh: Mesh | None = None) -> Params:
    """Fresh adapters, float32: A uniform within 1 / sqrt(in), as PEFT has it, and B zero, so that they change nothing.

    The numbers do not depend on the mesh.
    """
    leaves, structure = jax.tree.flatten(adapter_specs(config, lora))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    found = jax.tree.unflatten(structure, [spec.init(key, spec.shape, jnp.float32) for spec, key in zip(leaves, keys)])
    if mesh is None:
        return found

    def place(value: Array, like: jax.ShapeDtypeStruct) -> Array:
        return jax.make_array_from_callback(value.shape, like.sharding, np.asarray(value).__getitem__)

    return jax.tree.map(place, found, abstract_adapters(config, lora, mesh))


def joined(params: Params, adapters: Params, scale: float) -> Params:
    """The parameters with the adapters beside the kernels that they belong to, B times `scale`; nothing is copied."""
    out = dict(params)
    for name, value in adapters.items():
        if LORA[0] in value:
            out[name] = {**params[name], LORA[0]: value[LORA[0]], LORA[1]: value[LORA[1]] * scale}
        else:
            out[name] = joined(params[name], value, scale)
    return out


def has_adapters(params: Params) -> bool:
    """Whether adapters stand beside some of the kernels."""
    return any(LORA[0] in value or has_adapters(value) for value in params.values() if isinstance(value, dict))


def merged(params: Params) -> Params:
    """Parameters in which adapters stand beside kernels as plain ones, the kernels in their own dtype."""
    out: Params = {}
    for name, value in params.items():
        if not isinstance(value, dict):
            out[name] = value
        elif LORA[0] in value:
            kernel = _sum(value["kernel"], *(value[leaf] for leaf in LORA))
            out[name] = {k: v for k, v in value.items() if k not in LORA} | {"kernel": kernel}
        else:
            out[name] = merged(value)
    return out


@jax.jit
def _sum(kernel: Array, a: Array, b: Array) -> Array:
    product = jnp.einsum("...ir,...ro->...io", a, b, precision="highest")
    return (kernel.astype(product.dtype) + product).astype(kernel.dtype)


def adapter_tensors(config: ModelConfig, adapter: Adapter) -> Iterator[tuple[str, Array, int]]:
    """The matrices of an adapter under PEFT's names, each as a stack, to be taken at an index and transposed."""
    for path, modules in adapted_modules(config, adapter.lora).items():
        value = adapter.params
        for name in path:
            value = value[name]
        for index, module in enumerate(modules):
            yield f"base_model.model.{module}.lora_A.weight", value[LORA[0]], index
            yield f"base_model.model.{module}.lora_B.weight", value[LORA[1]], index
