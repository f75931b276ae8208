"""What a run would refuse hours later, looked for before its first stage: meshes, heads, lengths. Nothing is loaded but
config.json, the files' headers and tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax

from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import check_folder, tokenizer_of
from fusion_jax.models.lora import check_lora
from fusion_jax.models.parameters import check_heads
from fusion_jax.sampling.generate import encoded_prompts
from fusion_jax.sampling.ids import decoding_ways
from fusion_jax.sharding import tensor_shards
from fusion_jax.train.settings import TrainSettings, compute_for, compute_to_read

Folder = str | os.PathLike[str]


def check_training(settings: TrainSettings, option: str, *folders: Folder, encoders: bool = False) -> None:
    """A stage that trains one of these models, or reads with them on the same mesh.

    Args:
      option: of the stage's settings, for instance "--preference". encoders: whether it takes models with one.

    Raises:
      InputError: the mesh, the micro-batches or a model's heads do not fit the devices; names the setting.
    """
    _check_mesh(compute_for(settings, option=option).mesh, option, folders, encoders=encoders)
    if (lora := settings.lora) is not None:
        for folder in folders:
            check_lora(check_folder(folder), lora, f"{option}.lora")


def check_reading(settings: TrainSettings, option: str, *folders: Folder) -> None:
    """As `check_training`, where nothing is trained, so that batches may have any size."""
    _check_mesh(compute_to_read(settings, option=option).mesh, option, folders)


def check_decoder(folder: Folder) -> ModelConfig:
    """The configuration of a model that reads and writes one sequence of tokens, as the experiments need it.

    Raises:
      InputError: a model with an encoder.
    """
    config = check_folder(folder)
    refuse_encoder(config, folder)
    return config


def refuse_encoder(config: ModelConfig, model: Folder) -> None:
    """Refuse a model with an encoder, which the experiments do not train or read."""
    if config.encoder:
        problem = f"is {config.model_type}, which has an encoder; this experiment trains and samples decoders alone"
        raise InputError(problem, file=model, cure="Give a decoder, such as a Llama, Qwen or Gemma folder")


def _check_mesh(
    mesh: jax.sharding.Mesh | None, option: str, folders: Sequence[Folder], *, encoders: bool = False
) -> None:
    for folder in folders:
        config = check_folder(folder) if encoders else check_decoder(folder)
        if mesh is not None:
            check_heads(config, tensor_shards(mesh), mesh.size, f"{option}.mesh-tensor", model=folder)


def check_sampling(tensor: int, option: str, *folders: Folder) -> None:
    """Models that generate; on one device nothing is split.

    Args:
      tensor: of `SampleSettings`, which `option` sets.

    Raises:
      InputError: a model's heads or the devices do not divide by it.
    """
    for folder in folders:
        config = check_decoder(folder)
        if jax.device_count() > 1:
            decoding_ways(config, jax.device_count(), tensor, option)


def check_length(folder: Folder, max_length: int, option: str) -> None:
    """A model that shall train on rows of up to `max_length` tokens. The last token of a row is only predicted.

    Raises:
      InputError: it has fewer positions; names the option that sets the length.
    """
    positions = check_folder(folder).max_positions
    if max_length - 1 > positions:
        raise InputError(
            f"rows of {max_length} tokens are more than the model's {positions} positions", file=folder, field=option,
            cure=f"Set it to {positions} or less",
        )  # fmt: skip


def check_prompts(
    folder: Folder, prompts: Sequence[Record], new_tokens: int, option: str, *, chat: bool = True
) -> None:
    """Prompts that a model shall answer with up to `new_tokens` tokens.

    Args:
      option: what sets the new tokens. chat: see `generate`.

    Raises:
      InputError: a prompt with the new tokens exceeds the model's positions.
    """
    if not prompts:
        return
    texts = [p["prompt"] if chat else p["prompt"] + "\n" for p in prompts]
    most = check_folder(folder).max_positions
    lengths = [len(ids) for ids in encoded_prompts(tokenizer_of(folder), texts, chat=chat, most=most)]
    _check_positions(folder, prompts, lengths, new_tokens, option)


def check_judged(folder: Folder, prompts: Sequence[Record], new_tokens: int, option: str) -> None:
    """Prompts whose answers of up to `new_tokens` tokens a reward model shall score; tokens are taken to be as long as
    the reward model's.

    Raises:
      InputError: as `check_prompts`.
    """
    most = check_folder(folder).max_positions
    lengths = [len(ids) for ids in encoded_prompts(tokenizer_of(folder), [p["prompt"] for p in prompts], most=most)]
    _check_positions(folder, prompts, lengths, new_tokens, option)


def _check_positions(
    folder: Folder, prompts: Sequence[Record], lengths: Sequence[int], new_tokens: int, option: str
) -> None:
    positions = check_folder(folder).max_positions
    for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True), 1):
        if length + new_tokens > positions:
            raise InputError(
                f"{length} tokens of the prompt and {new_tokens} new ones exceed the model's {positions} positions",
                file=folder, record=prompt.get("prompt_id", number), field=option,
                cure="Shorten the prompt or leave it out" if length >= positions
                else f"Lower it to {positions - length}, or leave the prompt out",
            )  # fmt: skip
