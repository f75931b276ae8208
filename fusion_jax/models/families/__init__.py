"""One file a family: how a Hugging Face config.json and the tensors of its files map to the parts of a model.

A family is a module of this folder, named as its model_type, with "_" for "-". It has
  from_hf(fields) -> ModelConfig, from the typed fields of a config.json (`fusion_jax.fields.Fields`);
  to_hf(config) -> dict, the config.json of a model that never had one;
  tensors(config) -> list[HfTensor], every weight of the files and the parameter it is or holds;
  IGNORED, patterns of tensors beside the weights that such checkpoints may hold, besides the usual buffers;
  NAMES, where its config.json calls fields otherwise: usual name -> its own. The functions above use the usual names;
  usual_name(name, names), COPIES and ZEROS, where files hold tensors twice, or under older names: see `models.head`;
  LACKS, whether its config.json says which layers lack attention or feed-forward. Those of the others do not: a model
  that lacks some has the config.json of `families.pruned`;
  BESIDE, files that a folder needs for programs that take its own code; they are not run here.
A module is imported when its family is needed first. Nothing else has to be changed for it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pkgutil
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from fusion_jax.errors import InputError, first_line, quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import pruned
from fusion_jax.models.families.rotary import with_both_forms
from fusion_jax.models.families.tensors import HfTensor
from fusion_jax.models.parameters import ParamSpec, numbers_of, parameter_specs

LARGEST = 10 * 10**12  # bytes
_SHARED = ("common", "pruned", "rotary", "tensors")
_HYPHENS = {"nemotron_nas": "nemotron-nas"}


class Family(Protocol):
    """What a family's module has."""

    IGNORED: tuple[str, ...]

    def from_hf(self, fields: Fields, /) -> ModelConfig: ...

    def to_hf(self, config: ModelConfig, /) -> dict[str, Any]: ...

    def tensors(self, config: ModelConfig, /) -> list[HfTensor]: ...


class Families(UserDict[str, Family | None]):
    """Families by their names, each imported when it is asked for.

    Raises (when one is asked for):
      InputError: its file cannot be imported; the others can be.
    """

    def __getitem__(self, name: str) -> Family:
        family = self.data[name]
        if family is None:
            module = f"{__name__}.{name.replace('-', '_')}"
            try:
                family = self.data[name] = importlib.import_module(module)
            except Exception as error:
                found = importlib.util.find_spec(module)
                file = module if found is None else found.origin
                problem = f"cannot be imported ({type(error).__name__}: {first_line(error)})"
                raise InputError(problem, file=file, cure="Correct the family's file") from error
        return family


def every_family() -> Families:
    """Those of the modules of this folder."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED]
    return Families({_HYPHENS.get(name, name): None for name in names})


FAMILIES = every_family()


def family_of(model_type: str) -> Family:
    """The family of a model_type; InputError names the known ones."""
    return _family(Fields({"model_type": model_type}))


def _family(values: Fields) -> Family:
    name = values.text("model_type", "")
    if name not in FAMILIES:
        problem = f"model_type {quoted(name)} is not supported"
        raise values.wrong("model_type", problem, f"Known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def config_from_hf(values: Mapping[str, Any], file: str | os.PathLike[str] | None = None) -> ModelConfig:
    """config.json to the model's parts. `auto_map` and code beside it are not looked at.

    Args:
      file: where the values stand, for messages.

    Raises:
      InputError: a field that is missing, of another type, out of range or not supported, fields that do not go
        together, or more than `LARGEST` bytes of weights in float32; names the field.
    """
    fields = Fields(values, file)
    if values.get("model_type") == pruned.MODEL_TYPE:
        config = pruned.from_hf(fields, _config(pruned.base_of(fields)))
    else:
        config = _config(fields)
    size = 4 * numbers_of(parameter_specs(config))
    if size > LARGEST:
        problem = f"implies {size / 1e12:.0f} TB of float32 weights"
        raise InputError(problem, file=file, cure="Restore the model's own config.json")
    return config


def _config(fields: Fields) -> ModelConfig:
    family = _family(fields)
    return family.from_hf(fields.renamed(_names(family)))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The model's parts as a config.json."""
    family = family_of(config.model_type)
    lost = pruned.Lost() if getattr(family, "LACKS", False) else pruned.lost_of(config)
    names, usual = _names(family), family.to_hf(pruned.whole(config) if lost else config)
    values = {names.get(name, name): value for name, value in usual.items()}
    return pruned.to_hf(with_both_forms(values, names), lost) if lost else values


def names_of(model_type: Any) -> Mapping[str, str]:
    """Usual names of fields -> what config.json calls them, where a family that is known here renames some."""
    return _names(FAMILIES[model_type]) if isinstance(model_type, str) and model_type in FAMILIES else {}


def _names(family: Family) -> Mapping[str, str]:
    return getattr(family, "NAMES", {})


def tensors_of(config: ModelConfig) -> list[HfTensor]:
    """Every weight of the Hugging Face files and the parameter it is or holds.

    Raises:
      InputError: the family's list leaves a parameter out, names one twice, or gives one tensor to two of them.
    """
    tensors = family_of(config.model_type).tensors(config)
    check_tensors(config, tensors)
    return tensors


def check_tensors(config: ModelConfig, tensors: Sequence[HfTensor]) -> None:
    """Every parameter is one tensor of the files, or one part of such; see `tensors_of`."""
    wholes: dict[str, HfTensor] = {}
    found: dict[tuple[str, ...], set[tuple[int, ...]]] = {}
    for tensor in tensors:
        first = wholes.setdefault(tensor.name, tensor)
        if first is not tensor and (tensor.shape is None or first.shape is None):
            raise _unmapped(config, f"is two parameters, {_name(first)} and {_name(tensor)}", tensor.name)
        if tensor.index in found.setdefault(tensor.path, set()):
            raise _unmapped(config, "has two tensors", _name(tensor))
        found[tensor.path].add(tensor.index)
    leaves = jax.tree_util.tree_leaves_with_path(
        parameter_specs(config), is_leaf=lambda spec: isinstance(spec, ParamSpec)
    )
    for keys, spec in leaves:
        path = tuple(key.key for key in keys)
        have = found.pop(path, set())
        leading = spec.shape[: len(next(iter(have), ()))]
        missing = [i for i in np.ndindex(*leading) if i not in have]
        if missing or len(have) != math.prod(leading):
            raise _unmapped(config, "has no tensor", _name(HfTensor("", path, missing[0] if missing else ())))
    if found:
        raise _unmapped(config, "is no parameter of this model", ".".join(next(iter(found))))


def _name(tensor: HfTensor) -> str:
    return ".".join((*tensor.path, *map(str, tensor.index)))


def _unmapped(config: ModelConfig, problem: str, field: str) -> InputError:
    cure = "Give every parameter one tensor in the family's tensors(config)"
    return InputError(problem, file=f"family {config.model_type}", field=field, cure=cure)
