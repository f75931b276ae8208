"""A Hugging Face folder or GGUF file in, a Hugging Face folder out; weights stream slice by slice into their sharding
and back."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.errors import InputError, quoted
from fusion_jax.files import replacing_folder
from fusion_jax.hosts.agree import barrier, first_host, on_first
from fusion_jax.models import decoder
from fusion_jax.models.config import Head, ModelConfig
from fusion_jax.models.decoder import Params, forward, head_kernel, padded_positions, soft_capped
from fusion_jax.models.families import config_from_hf, config_to_hf, family_of, names_of, tensors_of
from fusion_jax.models.families.pruned import of_whole
from fusion_jax.models.families.rotary import with_both_forms
from fusion_jax.models.families.tensors import HfTensor
from fusion_jax.models.gguf_header import is_gguf
from fusion_jax.models.gguf_model import gguf_name, tell_size
from fusion_jax.models.head import usual_tensors, with_head
from fusion_jax.models.int8 import int8_numbers, refuse_int8
from fusion_jax.models.json_files import read_config, read_generation
from fusion_jax.models.lora import Adapter
from fusion_jax.models.peft_folder import is_peft
from fusion_jax.models.rows import text_rows, type_rows, whole
from fusion_jax.models.safetensors_io import (
    DTYPES,
    NAMES,
    PlannedTensor,
    TensorEntry,
    metadata_dtype,
    write_folder,
)
from fusion_jax.models.stored import root_of, stored_tensors
from fusion_jax.models.tokenizers import check_fits, load_tokenizer, read_settings, save_tokenizer, tokenizer_of
from fusion_jax.models.weights import check_weights, planned_tensors, read_params
from fusion_jax.ops.int8 import is_int8
from fusion_jax.paths import as_path, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = jax.Array
__all__ = ["Model", "check_folder", "classify", "encode", "load", "load_tokenizer", "logits", "save", "tokenizer_of"]


@dataclass(frozen=True)
class Model:
    """A model: what it is, its weights (nested dict, float arrays), its tokenizer, its folder's own settings.

    hf_config: config.json as read; generation: generation_config.json as read; file_dtype: dtype of the files.
    tokenizer_config: tokenizer_config.json as read.
    folder: whose weights these are, if they are a folder's. adapter: what was trained of it, where that was an adapter.
    """

    config: ModelConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase | None = None
    hf_config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    file_dtype: str = "float32"
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    adapter: Adapter | None = None

    @property
    def reader(self) -> PreTrainedTokenizerBase:
        """The tokenizer, of a model that has to have one.

        Raises:
          InputError: it has none.
        """
        if self.tokenizer is None:
            cure = "Add the tokenizer's files to its folder"
            raise InputError("the model has no tokenizer", file=self.folder or None, field="tokenizer", cure=cure)
        return self.tokenizer

    def __repr__(self) -> str:
        """One line: family, sizes, dtypes, tokenizer and folder, and no weights."""
        leaves, config = jax.tree.leaves(self.params, is_leaf=is_int8), self.config
        parts = [
            config.model_type, f"{sum(s.layers for s in config.stacks.values())} layers", f"width {config.width}",
            f"{sum(leaf.size for leaf in leaves):,} parameters", "/".join(sorted({str(leaf.dtype) for leaf in leaves})),
            "no tokenizer" if self.tokenizer is None else f"tokenizer of {len(self.tokenizer)} entries",
        ]  # fmt: skip
        return f"Model({', '.join(parts)}{f', from {quoted(self.folder)}' if self.folder else ''})"


def check_folder(path: str | os.PathLike[str], *, adapter: str | os.PathLike[str] | None = None) -> ModelConfig:
    """What `load` would refuse by config.json and the files' headers, at little cost; the config of a good folder."""
    return _opened(as_path(path), None if adapter is None else as_path(adapter))[1]


def _opened(
    path: Path, adapter: Path | None
) -> tuple[dict[str, Any], ModelConfig, dict[str, TensorEntry], list[HfTensor]]:
    """config.json and what it means; the tensors of the files, and those of the architecture, which are among them.

    A stored head that is not the embedding counts, whatever config.json says: then the values say that nothing is tied.
    """
    values, folder = read_config(path), root_of(path)
    file = folder if is_gguf(folder) else folder / "config.json"
    config = config_from_hf(values, file)
    family = family_of(config.model_type)
    untied = {t.path: t.name for t in family.tensors(dataclasses.replace(config, head=Head()))}
    embedding, head = untied["embed", "embedding"], untied.get(("head", "kernel"), "")
    found = usual_tensors(stored_tensors(path, adapter), family)
    tie = names_of(config.model_type).get("tie_word_embeddings", "tie_word_embeddings")
    entries, tied = with_head(found, config.head.tied, embedding=embedding, head=head)
    if tied != config.head.tied and not config.head.labels:
        values, config = of_whole(values, lambda own: {**own, tie: tied}), _with_tied(config, tied)
    tensors = tensors_of(config)
    lost = {head: f", or set {tie} to true in config.json if the embedding is the head"} if embedding in entries else {}
    lost |= {t.name: ", or take a model that has a pooler" for t in tensors if t.path == ("pooler", "kernel")}
    named = partial(gguf_name, file=folder) if is_gguf(folder) else str
    check_weights(folder, config, entries, tensors, family.IGNORED, lost, named)
    return values, config, entries, tensors


def _with_tied(config: ModelConfig, tied: bool) -> ModelConfig:
    return dataclasses.replace(config, head=dataclasses.replace(config.head, tied=tied))


def load(
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> Model:
    """Read a Hugging Face folder; or a GGUF file, dequantised tensor by tensor, whose size is logged before; or a LoRA
    adapter (a PEFT folder), merged into its base as that is read.

    Args:
      adapter: a PEFT folder to merge into the model of `path`, whatever base it names itself.
      dtype: of the parameters; None keeps the files'. "int8": the kernels of the layers as int8 with a float32 scale an
        output (`ops.int8`), made tensor by tensor, the rest as in the files: for reading and writing texts, neither
        trained nor saved.
      mesh: shard the parameters over it; every device's slice is read on its own.

    Raises:
      InputError: a missing or broken file, an unknown architecture, a missing, extra or misshapen weight, a tokenizer
        with more entries than the embedding, a GGUF file that is larger than the memory; names the file and the tensor.
    """
    folder, wanted = as_path(path), _dtype_of(dtype)
    values, config, entries, tensors = _opened(folder, None if adapter is None else as_path(adapter))
    file_dtype = metadata_dtype({t.name: entries[t.name] for t in tensors})
    generation = read_generation(folder, config.vocab_size)
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        check_fits(tokenizer, config.vocab_size, folder)
    settings = {} if tokenizer is None else read_settings(folder)
    int8 = wanted == jnp.int8
    chosen = jnp.dtype(file_dtype if wanted is None or int8 else wanted)
    if is_gguf(root := root_of(folder)):
        rounded = int8_numbers(config) if int8 else 0
        tell_size(root, chosen, on_host=jax.local_devices()[0].platform == "cpu", int8=rounded)
    params = read_params(config, entries, tensors, chosen, mesh, int8=int8)
    own = "" if adapter is not None or is_peft(folder) else str(folder)  # others' weights are no folder's
    return Model(config, params, tokenizer, values, generation, file_dtype.name, settings, own)


def _dtype_of(dtype: Any) -> Any:
    """What parameters are loaded in; None for that of the files.

    Raises:
      InputError: another one than the floating-point ones and int8.
    """
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in (*DTYPES.values(), jnp.dtype(jnp.int8)):  # NumPy takes None for float64
        cure = "Give float32, bfloat16, float16 or int8"
        raise InputError(f"{quoted(str(dtype))} is no dtype of weights", field="dtype", cure=cure)
    return found


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
      InputError: the folder exists (without `overwrite`); weights in int8. Nothing is left behind when writing fails.
    """
    refuse_int8(model.params, "saved")
    folder, name = as_path(path), dtype or model.file_dtype
    if NAMES.get(jnp.dtype(name)) not in DTYPES:
        raise InputError(f"weights cannot be saved as {name}", field="dtype", cure="Use float32, bfloat16 or float16")
    on_first(lambda: _check_free(folder, overwrite))
    tensors = list(planned_tensors(model.config, model.params, tensors_of(model.config), jnp.dtype(name)))
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
    with replacing_folder(folder) as temporary:
        write_folder(temporary, tensors, shard_bytes=shard_bytes)
        _write_settings(model, temporary, dtype)


def config_values(model: Model) -> dict[str, Any]:
    """config.json of a model: as read where it still describes it, otherwise made anew with the ids of tokens."""
    values = model.hf_config
    if "model_type" in values and config_from_hf(values) == model.config:
        return values
    return config_to_hf(model.config) | {k: v for k, v in values.items() if k.endswith("_token_id")}


def _write_settings(model: Model, folder: Path, dtype: str) -> None:
    values = config_values(model)
    if not model.config.decoder:  # the heads of its training are not among the weights
        values = values | {"architectures": config_to_hf(model.config)["architectures"]}
    names = names_of(model.config.model_type)
    values = of_whole(values, lambda own: with_both_forms(own, names))
    values |= {"dtype": dtype, "torch_dtype": dtype}  # the name before transformers 4.56
    if model.generation:
        write_text(folder / "generation_config.json", json.dumps(model.generation, indent=2) + "\n")
    if model.tokenizer is not None:
        save_tokenizer(model.tokenizer, folder, model.tokenizer_config)
    for file in getattr(family_of(model.config.model_type), "BESIDE", ()):
        write_text(folder / file.name, file.read_text())
    write_text(folder / "config.json", json.dumps(values, indent=2) + "\n")  # last: on a bucket it makes the folder one


def logits(model: Model, tokens: Array, lengths: Array | None = None, *, decoder_tokens: Array | None = None) -> Array:
    """float32[B,T,V] for int[B,T] right-padded tokens: for inspection and tests, not for training.

    Args:
      lengths: int[B], real tokens of each row; what lies beyond is undefined.
      decoder_tokens: int[B,T] of a model with an encoder, which reads `tokens`; the first is `config.start`.

    Raises:
      InputError: tokens that are no rows of whole numbers, such as a text; a decoder's tokens that are missing, or that
        a model without an encoder is given.
    """
    config, dtype = model.config, _compute_dtype(model)
    tokens, lengths = text_rows(config, tokens, lengths)
    _check_sides(config, decoder_tokens is not None)
    if decoder_tokens is not None:
        encoded = decoder.encode(model.params, config, tokens, whole(tokens, lengths), dtype=dtype)
        rows, _ = text_rows(config, decoder_tokens, field="decoder_tokens", count=len(tokens))
        hidden = forward(model.params, config, rows, encoded=encoded, dtype=dtype)
    elif lengths is None:
        hidden = forward(model.params, config, tokens, dtype=dtype)
    else:
        segments = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
        # beyond the model's own, too: padding stays at a row's last position
        last = jnp.maximum(lengths - 1, 0)
        places = jnp.minimum(jnp.arange(tokens.shape[1], dtype=jnp.int32), last[:, None])
        hidden = forward(model.params, config, tokens, positions=places, segment_ids=segments, dtype=dtype)
    out = jnp.einsum(
        "btd,vd->btv", hidden, head_kernel(model.params, config).astype(hidden.dtype),
        preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
    )  # fmt: skip
    return soft_capped(out, config)


def _check_sides(config: ModelConfig, given: bool) -> None:
    if not config.decoder:
        raise InputError(f"{config.model_type} is an encoder, without logits of tokens", cure="Call fj.encode")
    if bool(config.encoder) != given:
        problem = "has a decoder whose tokens are missing" if config.encoder else "has no encoder"
        cure = "Give decoder_tokens, config.start first" if config.encoder else "Leave decoder_tokens out"
        raise InputError(f"{config.model_type} {problem}", field="decoder_tokens", cure=cure)


def encode(
    model: Model, tokens: Array, lengths: Array | None = None, *, types: Array | None = None
) -> tuple[Array, Array | None]:
    """What an encoder makes of int[B,T] right-padded tokens: hidden states float32[B,T,D] and, where the model has a
    pooler, tanh(linear(hidden state of the first token)) float32[B,D], else None.

    Args:
      lengths: int[B], real tokens of each row. types: int[B,T], which of the texts of a row a token is of.

    Raises:
      InputError: a model without an encoder; tokens that are no rows of whole numbers.
    """
    if not model.config.encoder:
        raise InputError(f"{model.config.model_type} has no encoder", cure="Call fj.logits")
    config, dtype = model.config, _compute_dtype(model)
    tokens, lengths = text_rows(config, tokens, lengths)
    types = type_rows(config, types, tokens)
    encoded = decoder.encode(model.params, config, tokens, whole(tokens, lengths), types=types, dtype=dtype)
    pooler = model.params.get("pooler")
    return encoded.hidden, None if pooler is None else pooled(encoded.hidden[:, 0], pooler)


def pooled(state: Array, pooler: Params) -> Array:
    """tanh(linear(state)), [B,D] -> [B,D]."""
    kernel, bias = (pooler[name].astype(state.dtype) for name in ("kernel", "bias"))
    return jnp.tanh(jnp.einsum("bd,de->be", state, kernel, precision="highest") + bias)


def classify(model: Model, tokens: Array, lengths: Array, *, types: Array | None = None) -> Array:
    """float32[B,labels]: scores of a sequence-classification head at the last real token of each row, or at the pooled
    first one of an encoder's. A decoder behind an encoder reads the row once more, shifted by its own first token; the
    row's last token should be the end of the text.
    """
    score = model.params.get("score")
    if not model.config.head.labels or score is None:
        raise InputError("the model has no sequence-classification head", cure="Give a reward-model folder")
    tokens, ends = text_rows(model.config, tokens, lengths)
    state = _read(model, tokens, whole(tokens, ends), type_rows(model.config, types, tokens))
    if model.config.head.pooled:
        state = pooled(state, model.params["pooler"])
    scores = jnp.einsum("bd,ld->bl", state.astype(jnp.float32), score["kernel"].astype(jnp.float32))
    return scores + score["bias"].astype(jnp.float32) if "bias" in score else scores


def _read(model: Model, tokens: Array, lengths: Array, types: Array | None) -> Array:
    """[B,D], the hidden state that a classifier judges a row by."""
    config, dtype = model.config, _compute_dtype(model)
    if not config.decoder:
        return decoder.encode(model.params, config, tokens, lengths, types=types, dtype=dtype).hidden[:, 0]
    if config.encoder:
        encoded = decoder.encode(model.params, config, tokens, lengths, dtype=dtype)
        shifted = jnp.roll(tokens, 1, 1).at[:, 0].set(config.start)
        hidden = forward(model.params, config, shifted, encoded=encoded, dtype=dtype)
    else:
        positions = padded_positions(tokens, config, lengths)
        hidden = forward(model.params, config, tokens, positions=positions, dtype=dtype)
    return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]


def _compute_dtype(model: Model) -> Any:
    return jnp.promote_types(model.params["embed"]["embedding"].dtype, jnp.float32)
