"""A Hugging Face folder in, a Hugging Face folder out; weights stream slice by slice into their sharding and back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fusion_jax.errors import InputError, first_line
from fusion_jax.hosts import barrier, first_host, on_first
from fusion_jax.json_files import read_json
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.decoder import Params, forward, head_kernel, padded_positions
from fusion_jax.models.families import config_from_hf, config_to_hf, tensor_names
from fusion_jax.models.families.common import HfTensor
from fusion_jax.models.json_files import read_config
from fusion_jax.models.parameters import abstract_params
from fusion_jax.models.safetensors_io import (
    NAMES,
    PlannedTensor,
    TensorEntry,
    metadata_dtype,
    open_folder,
    write_folder,
)
from fusion_jax.sharding import fetched

Array = jax.Array
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class Model:
    """A model: what it is, its weights (nested dict, float arrays), its tokenizer, its folder's own settings.

    hf_config: config.json as read; generation: generation_config.json as read; file_dtype: dtype of the files.
    """

    config: DecoderConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase | None = None
    hf_config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    file_dtype: str = "float32"


def check_folder(path: str | os.PathLike[str]) -> DecoderConfig:
    """What `load` would refuse by config.json and the files' headers, at little cost; the config of a good folder."""
    return _opened(Path(path))[1]


def _opened(folder: Path) -> tuple[dict[str, Any], DecoderConfig, dict[str, TensorEntry], list[HfTensor]]:
    """config.json as read and understood; the tensors of the files and of the architecture, which are the same."""
    values = read_config(folder)
    try:
        config = config_from_hf(values)
    except InputError as error:
        raise InputError(error.problem, file=folder / "config.json", field=error.field, cure=error.cure) from None
    entries = open_folder(folder)
    names = tensor_names(config)
    _check_names(folder, config, entries, names)
    return values, config, entries, names


def load(path: str | os.PathLike[str], *, dtype: Any = None, mesh: Mesh | None = None) -> Model:
    """Read a Hugging Face folder.

    Args:
      dtype: of the parameters; None keeps the files'.
      mesh: shard the parameters over it; every device's slice is read on its own.

    Raises:
      InputError: a missing or broken file, an unknown architecture, a missing, extra or misshapen weight, a tokenizer
        with more entries than the embedding; names the file and the tensor.
    """
    folder = Path(path)
    values, config, entries, names = _opened(folder)
    file_dtype = metadata_dtype(entries)
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise InputError(
            f"has {len(tokenizer)} entries, the embedding only {config.vocab_size}", file=folder, field="tokenizer",
            cure="Use the model's own tokenizer, or resize the embedding",
        )  # fmt: skip
    params = _read_params(folder, config, entries, names, jnp.dtype(dtype or file_dtype), mesh)
    generation = folder / "generation_config.json"
    return Model(
        config, params, tokenizer, values, read_json(generation) if generation.exists() else {}, file_dtype.name
    )


def tokenizer_of(path: str | os.PathLike[str], option: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, given for `option`, that must have one.

    Raises:
      InputError: no such folder, or `load_tokenizer` finds none; names the folder.
    """
    if not Path(path).is_dir():
        raise InputError(
            "there is no such folder", file=path, field=option, cure="Give a Hugging Face folder or zoo:NAME"
        )
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        raise InputError("holds no tokenizer", file=path, field=option, cure="Add the folder's tokenizer.json")
    return tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or None where it has none; code from the folder is never run."""
    folder = Path(path)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        # tokenizer.json is the whole tokenizer; the class that a model_type suggests may rebuild it differently.
        kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        problem = f"cannot be loaded ({type(error).__name__}: {first_line(error)})"
        raise InputError(problem, file=folder, field="tokenizer", cure="Restore the tokenizer's files") from None


def _check_names(folder: Path, config: DecoderConfig, entries: dict[str, TensorEntry], names: list[HfTensor]) -> None:
    """Every weight is there, none is left over, and each has the shape that the config gives."""
    specs = abstract_params(config)
    for tensor in names:
        if tensor.name not in entries:
            raise InputError(
                "the weight is missing", file=folder, field=tensor.name, cure="Restore the checkpoint's files"
            )
        shape: tuple[int, ...] = _at(specs, tensor.path).shape
        shape = shape if tensor.layer is None else shape[1:]
        shape = shape[::-1] if tensor.transpose else shape
        if entries[tensor.name].shape != shape:
            raise InputError(
                f"has shape {entries[tensor.name].shape}, config.json gives {shape}",
                file=entries[tensor.name].file, field=tensor.name,
                cure="Use the config.json that belongs to the weights",
            )  # fmt: skip
    expected = {t.name for t in names}
    for name in entries:
        tied = config.tied_head and name == "lm_head.weight"
        if name not in expected and not name.endswith("rotary_emb.inv_freq") and not tied:
            raise InputError(
                "is a weight that this architecture does not have", file=entries[name].file, field=name,
                cure="Remove it, or correct model_type in config.json",
            )  # fmt: skip


def _at(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _read_params(
    folder: Path,
    config: DecoderConfig,
    entries: dict[str, TensorEntry],
    names: list[HfTensor],
    dtype: Any,
    mesh: Mesh | None,
) -> Params:
    sources: dict[tuple[str, ...], list[HfTensor]] = {}
    for tensor in names:
        sources.setdefault(tensor.path, []).append(tensor)

    def read(path: tuple[str, ...], abstract: jax.ShapeDtypeStruct) -> Array:
        tensors = sources[path]

        def part(index: Any) -> np.ndarray:
            if tensors[0].layer is None:
                return _slice(entries[tensors[0].name], index, tensors[0].transpose, dtype)
            chosen = tensors[index[0]]
            return np.stack([_slice(entries[t.name], index[1:], t.transpose, dtype) for t in chosen])

        sharding = abstract.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.make_array_from_callback(abstract.shape, sharding, part)

    return _map_with_path(read, abstract_params(config, dtype, mesh))


def _map_with_path(fn: Any, tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        k: _map_with_path(fn, v, (*prefix, k)) if isinstance(v, dict) else fn((*prefix, k), v) for k, v in tree.items()
    }


def _slice(entry: TensorEntry, index: tuple[slice, ...], transpose: bool, dtype: Any) -> np.ndarray:
    value = entry.read(index[::-1] if transpose else index)
    return np.ascontiguousarray((value.T if transpose else value).astype(dtype, copy=False))


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a Hugging Face folder: weights tensor by tensor, config.json, generation_config.json, tokenizer.

    Args:
      dtype: of the files ("float32", "bfloat16", "float16"); None keeps that of the files the model was read from.
      overwrite: replace a folder that is there.

    Where several hosts hold the parameters, all of them call this; each tensor goes to the first one, which writes.

    Raises:
      InputError: the folder exists (without `overwrite`). Nothing is left behind when writing fails.
    """
    folder, name = Path(path), dtype or model.file_dtype
    if jnp.dtype(name) not in NAMES:
        raise InputError(f"weights cannot be saved as {name}", field="dtype", cure="Use float32, bfloat16 or float16")
    on_first(lambda: _check_free(folder, overwrite))
    tensors = list(_planned(model, jnp.dtype(name)))
    if first_host():
        _write(model, folder, name, tensors, shard_bytes)
    else:
        for tensor in tensors:
            tensor.value()  # the first host asks for each in this order, and gets it from all
    barrier(f"saved {folder}")


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise InputError("exists already", file=folder, cure="Choose another folder")


def _write(model: Model, folder: Path, dtype: str, tensors: Sequence[PlannedTensor], shard_bytes: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write_folder(temporary, tensors, shard_bytes=shard_bytes)
        _write_settings(model, temporary, dtype)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _planned(model: Model, dtype: np.dtype) -> Iterator[PlannedTensor]:
    for tensor in tensor_names(model.config):
        value = _at(model.params, tensor.path)
        shape = value.shape if tensor.layer is None else value.shape[1:]

        def fetch(tensor: HfTensor = tensor, value: Array = value, shape: tuple[int, ...] = shape) -> np.ndarray:
            if not value.is_fully_addressable:
                start, size = (0, len(value)) if tensor.layer is None else (tensor.layer, 1)
                one = fetched(value, start, size).reshape(shape)
            else:
                one = np.asarray(value if tensor.layer is None else value[tensor.layer])
            host = one.astype(dtype, copy=False)
            return host.T if tensor.transpose else host

        yield PlannedTensor(tensor.name, dtype, shape[::-1] if tensor.transpose else shape, fetch)


def _write_settings(model: Model, folder: Path, dtype: str) -> None:
    values = model.hf_config
    if not values or config_from_hf(values) != model.config:
        values = {**{k: v for k, v in values.items() if k.endswith("_token_id")}, **config_to_hf(model.config)}
    values = {k: v for k, v in values.items() if k != "torch_dtype"} | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if model.generation:
        text = json.dumps(model.generation, indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def logits(model: Model, tokens: Array, lengths: Array | None = None) -> Array:
    """float32[B,T,V] for int[B,T] right-padded tokens: for inspection and tests, not for training.

    Args:
      lengths: int[B], real tokens of each row; what lies beyond is undefined.
    """
    tokens = jnp.asarray(tokens)
    segments = (
        None if lengths is None else (jnp.arange(tokens.shape[1]) < jnp.asarray(lengths)[:, None]).astype(jnp.int32)
    )
    hidden = forward(model.params, model.config, tokens, segment_ids=segments, dtype=_compute_dtype(model))
    out = jnp.einsum(
        "btd,vd->btv", hidden, head_kernel(model.params, model.config).astype(hidden.dtype),
        preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
    )  # fmt: skip
    cap = model.config.final_soft_cap
    return out if cap is None else cap * jnp.tanh(out / cap)


def classify(model: Model, tokens: Array, lengths: Array) -> Array:
    """float32[B,labels]: scores of a sequence-classification head at the last real token of each row."""
    if not model.config.num_labels:
        raise InputError("the model has no sequence-classification head", cure="Give a reward-model folder")
    tokens = jnp.asarray(tokens)
    positions = padded_positions(tokens, model.config)
    hidden = forward(model.params, model.config, tokens, positions=positions, dtype=_compute_dtype(model))
    last = jnp.take_along_axis(hidden, jnp.asarray(lengths)[:, None, None] - 1, axis=1)[:, 0]
    return jnp.einsum("bd,ld->bl", last.astype(jnp.float32), model.params["score"]["kernel"].astype(jnp.float32))


def _compute_dtype(model: Model) -> Any:
    return jnp.promote_types(model.params["embed"]["embedding"].dtype, jnp.float32)
