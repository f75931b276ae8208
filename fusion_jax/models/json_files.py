"""The JSON files of a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.files import reason
from fusion_jax.json_files import read_json
from fusion_jax.models.families.common import check_token_ids
from fusion_jax.models.gguf_header import gguf_instead, is_gguf, read_gguf_header
from fusion_jax.models.gguf_model import hf_config, hf_generation
from fusion_jax.models.peft_folder import base_of, is_peft
from fusion_jax.paths import check_bucket, exists, listed

GENERATION = "generation_config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, or what a GGUF file says in its place; of an adapter (PEFT), its base's.

    Raises:
      InputError: no such folder or file, it is not a JSON object, or the model is quantised.
    """
    check_directory(folder)
    if is_gguf(folder):
        return hf_config(folder)
    if is_peft(folder):
        return read_config(base_of(folder))
    file = folder / "config.json"
    if not exists(file):
        raise _no_config(folder)
    config: dict[str, Any] = read_json(file)
    if config.get("quantization_config") is not None:
        cure = "Dequantise it and save it again in bfloat16, or take the model before it was quantised"
        raise InputError("the model is quantised, which is not read", file=file, field="quantization_config", cure=cure)
    return config


def read_generation(folder: Path, vocabulary: int) -> dict[str, Any]:
    """generation_config.json of a model folder, empty where there is none; of a GGUF file, its tokens that end a text;
    of an adapter, its base's.

    Args:
      vocabulary: tokens of the model; what ends a text is one of them.

    Raises:
      InputError: not a JSON object, or a field of another type or out of range; names the field.
    """
    if is_peft(folder):
        return read_generation(base_of(folder), vocabulary)
    if is_gguf(folder):
        fields = Fields(hf_generation(folder), folder, within="tokenizer.ggml")
    elif exists(file := folder / GENERATION):
        fields = Fields(read_json(file), file)
    else:
        return {}
    check_token_ids(fields, vocabulary, ends=True)
    for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"):
        fields.number(name, None, low=0)
    for name in ("top_k", "max_length", "max_new_tokens", "min_new_tokens", "num_return_sequences"):
        fields.integer(name, None)
    fields.flag("do_sample", None)
    return dict(fields.values)


def check_directory(path: Path, field: str | None = None) -> None:
    """Raises InputError where a path is neither a folder that can be listed nor a GGUF file; names what it is instead.

    field: the option that the path was given for.
    """
    zoo = str(path).startswith("zoo:")
    cure = f"fusion_jax.zoo.model_path('{path}') is the folder" if zoo else "Give a Hugging Face model folder"
    if field is not None:
        cure = "Give a Hugging Face folder, a GGUF file or zoo:NAME"
    try:
        if is_gguf(path) and exists(path):
            read_gguf_header(path)
            return
        listed(path)
    except InputError:
        raise
    except FileNotFoundError:
        check_bucket(path, field)
        raise InputError("there is no such folder", file=path, field=field, cure=cure) from None
    except NotADirectoryError:
        raise InputError("is a file; there is no such folder", file=path, field=field, cure=cure) from None
    except ValueError:
        raise InputError("is no path (it holds a NUL character)", file=path, field=field, cure=cure) from None
    except OSError as error:
        raise InputError(f"cannot be opened ({reason(error)})", file=path, field=field, cure=cure) from None


def _no_config(folder: Path) -> InputError:
    names = listed(folder)
    if (beside := gguf_instead(folder, names)) is not None:
        return beside
    cure = "Give the path of a Hugging Face model folder"
    return InputError("holds no config.json", file=folder, cure=cure)
