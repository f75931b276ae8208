"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, read and written.

An adapter that is read is merged tensor by tensor, as its base's tensors are read: W + scale * B A, in float32 and then
in the base's dtype. The switches of PEFT that mean something else are refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.files import replacing_folder
from fusion_jax.hosts.agree import barrier, first_host
from fusion_jax.json_files import read_json
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.lora import Adapter, adapter_tensors
from fusion_jax.models.safetensors_io import MadeEntry, PlannedTensor, Shard, TensorEntry, read_header, write_shard
from fusion_jax.models.weights import indexed
from fusion_jax.paths import as_path, exists, is_remote, write_text

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
MATRIX = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
PLAIN = "Take an adapter of plain LoRA, or merge it with peft (merge_and_unload, save_pretrained)"
# Switches of adapter_config.json that change what an adapter computes; where one is on, the adapter is refused.
SWITCHES = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "use_qalora", "lora_bias", "alora_invocation_tokens", "use_bdlora", "arrow_config",
    "monteclora_config", "velora_config", "megatron_config",
)  # fmt: skip

KEPT = ("gaussian", "eva", "orthogonal")  # ways of `init_lora_weights` that leave the base as it is


def is_peft(path: Path) -> bool:
    """Whether a path is a folder with an adapter, and no model."""
    return exists(path / CONFIG) and not exists(path / "config.json")


@dataclass(frozen=True)
class PeftFolder:
    """An opened adapter. pairs: module of the base -> A [r, in] and B [out, r]. scales: of each module."""

    folder: Path
    fields: Fields
    pairs: Mapping[str, tuple[TensorEntry, TensorEntry]]
    scales: Mapping[str, float]

    @property
    def base(self) -> Path:
        """The folder of the base model, from `base_model_name_or_path`: a path, also one from the adapter's folder.

        Raises:
          InputError: it is not said, or is no folder here.
        """
        return base_of(self.folder)


def base_of(folder: Path) -> Path:
    """`PeftFolder.base` of a folder, of which only adapter_config.json is read."""
    fields = Fields(read_json(folder / CONFIG), folder / CONFIG)
    name = fields.text("base_model_name_or_path")
    for place in (as_path(name), folder / name) if name else ():
        if is_remote(place) or ((place.is_dir() or place.is_file()) and not place.samefile(folder)):
            return place
    cure = "Give the base beside the adapter: fusion_jax.load(BASE, adapter=FOLDER), BASE+FOLDER in a recipe"
    raise fields.wrong("base_model_name_or_path", f"{quoted(name)} is no folder here", cure)


def open_peft(folder: Path) -> PeftFolder:
    """An adapter's settings and headers; no number is read.

    Raises:
      InputError: a missing, pickled or broken file, another kind of adapter than LoRA, a switch that is not read,
        matrices without their other half or of another rank than the settings give; names file and field.
    """
    file = folder / CONFIG
    if not exists(file):
        raise InputError(f"holds no {CONFIG}", file=folder, cure="Give a folder that peft saved")
    fields = Fields(read_json(file), file, cure="Restore the adapter's own file")
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise fields.wrong("peft_type", f"{quoted(kind)} is not read", PLAIN)
    for switch in SWITCHES:
        if fields.values.get(switch):
            raise fields.wrong(switch, f"is {quoted(fields.values[switch])}, which is not read", PLAIN)
    begun = fields.values.get("init_lora_weights")
    if isinstance(begun, str) and begun not in KEPT:
        raise fields.wrong("init_lora_weights", f"is {quoted(begun)}, which changes the base", PLAIN)
    if fields.text("bias", "none") != "none":
        raise fields.wrong("bias", f"is {quoted(fields.values['bias'])}; trained biases are not read", PLAIN)
    if not exists(folder / WEIGHTS):
        if exists(folder / PICKLED):
            cure = "Save it with safetensors (peft: save_pretrained)"
            raise InputError("holds a pickled adapter, which is not read", file=folder / PICKLED, cure=cure)
        raise InputError(f"holds no {WEIGHTS}", file=folder, cure="Copy the missing file")
    pairs = _pairs(read_header(folder / WEIGHTS), folder / WEIGHTS)
    scales = {module: _scale(fields, module, a.shape[0], folder / WEIGHTS) for module, (a, _) in pairs.items()}
    return PeftFolder(folder, fields, pairs, scales)


def _pairs(entries: Mapping[str, TensorEntry], file: Path) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """A and B of each module."""
    halves: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        found = MATRIX.fullmatch(name)
        if found is None or len(entry.shape) != 2:
            raise InputError("is no LoRA matrix of a linear module", file=file, field=name, cure=PLAIN)
        entry.check_weight(name)
        halves.setdefault(found[1], {})[found[2]] = entry
    for module, both in halves.items():
        missing = sorted({"A", "B"} - both.keys())
        name = f"{PREFIX}{module}.lora_"
        if missing:
            problem, cure = "the matrix is missing", "Restore the adapter's files"
            raise InputError(problem, file=file, field=f"{name}{missing[0]}.weight", cure=cure)
        if both["A"].shape[0] != both["B"].shape[1]:
            problem = f"has rank {both['B'].shape[1]}, its other half {both['A'].shape[0]}"
            raise InputError(problem, file=file, field=f"{name}B.weight", cure="Restore the adapter's files")
    if not halves:
        raise InputError("holds no LoRA matrix", file=file, cure="Restore the adapter's files")
    return {module: (both["A"], both["B"]) for module, both in halves.items()}


def _scale(fields: Fields, module: str, rank: int, file: Path) -> float:
    """alpha over the rank, or over its root (rsLoRA), of a module; the patterns' numbers where they name it."""
    wanted = _of_module(fields, "rank_pattern", module, fields.integer("r", low=1))
    if wanted != rank:
        problem = f"has rank {rank}, adapter_config.json gives {wanted}"
        cure = "Restore the adapter's files"
        raise InputError(problem, file=file, field=f"{PREFIX}{module}.lora_A.weight", cure=cure)
    alpha = _of_module(fields, "alpha_pattern", module, fields.number("lora_alpha", 8, above=0))
    return float(alpha) / (math.sqrt(rank) if fields.flag("use_rslora", False) else rank)


def _of_module(fields: Fields, pattern: str, module: str, default: Any) -> Any:
    """A module's number of `rank_pattern` or `alpha_pattern`: the first key that is its name or the end of it."""
    patterns = fields.object(pattern, None)
    for key in patterns.values if patterns is not None else ():
        try:
            matches = re.fullmatch(rf"(.*\.)?({key})", module)
        except re.error:
            raise patterns.wrong(key, "is no pattern of a name") from None
        if matches:
            return patterns.number(key, above=0)
    return default


@dataclass(frozen=True)
class AdaptedEntry(MadeEntry):
    """A tensor of the base with its adapter added, as it is read; the dtype is the base's."""

    base: TensorEntry | None = None
    pair: tuple[TensorEntry, TensorEntry] | None = None
    scale: float = 1.0

    @property
    def files(self) -> tuple[Path, ...]:
        assert self.pair is not None
        return (self.file, self.pair[0].file)

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor [out, in] or a slice of it."""
        assert self.base is not None and self.pair is not None
        rows, columns = (*index, slice(None), slice(None))[:2]
        a, b = (each.read().astype(np.float32) for each in self.pair)
        change = np.float32(self.scale) * (b[rows] @ a[:, columns])
        return (self.base.read(index).astype(np.float32) + change).astype(self.dtype)


def adapted(entries: Mapping[str, TensorEntry], adapter: PeftFolder) -> dict[str, TensorEntry]:
    """The tensors of a base model by name, those that the adapter names with it.

    Raises:
      InputError: a module that the base does not have, or of other sizes; names the adapter's file and matrix.
    """
    out, file = dict(entries), adapter.folder / WEIGHTS
    for module, (a, b) in adapter.pairs.items():
        name, field = f"{module}.weight", f"{PREFIX}{module}.lora_A.weight"
        base = out.get(name)
        if base is None:
            problem = f"is of a module that the base model has no {name} for"
            raise InputError(problem, file=file, field=field, cure="Give the base model that it was trained on")
        if base.shape != (b.shape[0], a.shape[1]):
            problem = f"and its other half make {(b.shape[0], a.shape[1])}, the base model has {base.shape}"
            raise InputError(problem, file=file, field=field, cure="Give the base model that it was trained on")
        fields = {key: getattr(base, key) for key in ("file", "start", "dtype", "shape", "stored")}
        out[name] = AdaptedEntry(**fields, base=base, pair=(a, b), scale=adapter.scales[module])
    return out


def save_adapter(config: ModelConfig, adapter: Adapter, folder: Path) -> None:
    """Write an adapter as a PEFT folder, its matrices in float32. Where several hosts hold it, all call this."""

    def planned(name: str, stack: jax.Array, index: int) -> PlannedTensor:
        shape = (stack.shape[2], stack.shape[1])
        return PlannedTensor(name, np.dtype(np.float32), shape, lambda: indexed(stack, (index,)).T)

    tensors = tuple(planned(*one) for one in adapter_tensors(config, adapter))
    if first_host():
        with replacing_folder(folder) as temporary:
            write_shard(temporary, Shard(WEIGHTS, tensors))
            text = json.dumps(_settings(config, adapter, tensors), indent=2) + "\n"
            write_text(temporary / CONFIG, text)
    else:
        for tensor in tensors:
            tensor.value()
    barrier(f"saved {folder}")


def _settings(config: ModelConfig, adapter: Adapter, tensors: tuple[PlannedTensor, ...]) -> dict[str, Any]:
    modules = sorted({tensor.name.split(".")[-3] for tensor in tensors})
    alpha = adapter.lora.alpha
    base = adapter.base if not adapter.base or is_remote(adapter.base) else str(Path(adapter.base).resolve())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": adapter.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
    }
