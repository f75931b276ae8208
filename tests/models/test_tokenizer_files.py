"""Tokenizers of folders: from a SentencePiece model alone, broken ones, and as they are saved for other tools."""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fusion_jax import InputError
from fusion_jax.models.folder import load, load_tokenizer, save, tokenizer_of
from fusion_jax.models.tokenizers import portable
from fusion_jax.zoo import model_path
from tests.small import small_folder

REAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
TEXTS = ["the", "Hello  world", "a\tb\n\nc", "你好 é ñ", "1,234.5", " leading", "𝄞 </s> x"]


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def part(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece(file: Path, kind: int = 2) -> None:
    """A model of ten pieces. kind: 2 is BPE, 1 Unigram."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((p, 1) for p in ("▁", "t", "h", "e", "th", "the", "▁the"))]
    model = b"".join(part(1, part(1, p.encode()) + part(2, -float(i)) + part(3, k)) for i, (p, k) in enumerate(pieces))
    file.write_bytes(model + part(2, part(3, kind)) + part(3, part(3, 1)))


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder with tokenizer.model and settings, where neither sentencepiece nor tiktoken is installed."""
    for name in ("sentencepiece", "tiktoken", "google.protobuf"):
        monkeypatch.setitem(sys.modules, name, None)
    sentencepiece(tmp_path / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(values))
    return values


def test_a_sentencepiece_model_alone(alone):
    """Vicuna's form: settings, an added token beyond the model's pieces, a template."""
    tokenizer = load_tokenizer(alone)
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == [9]
    assert tokenizer("the")["input_ids"] == [1, 9] and tokenizer.decode([1, 9, 2], skip_special_tokens=True) == "the"
    settings_of(alone, add_bos_token=False, add_eos_token=True, pad_token="<pad>", chat_template="{{ 1 }}")
    (alone / "added_tokens.json").write_text('{"<pad>": 10}')
    tokenizer = load_tokenizer(alone)
    assert (
        tokenizer("the")["input_ids"] == [9, 2]
        and tokenizer.pad_token_id == 10
        and tokenizer.chat_template == "{{ 1 }}"
    )
    assert tokenizer.name_or_path == str(alone)
    (alone / "added_tokens.json").write_text('{"<pad>": 12}')
    with pytest.raises(
        InputError, match=r"added_tokens\.json, field '<pad>': gives a token the id 12 that has the id 10"
    ):
        load_tokenizer(alone)


def test_a_bare_sentencepiece_model(alone):
    (alone / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(alone)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer("the")["input_ids"]) == (1, 2, [1, 9])


def test_a_kind_that_only_sentencepiece_reads(alone):
    sentencepiece(alone / "tokenizer.model", kind=1)
    with pytest.raises(
        InputError, match=r"field 'tokenizer': .*sentencepiece.*pip install sentencepiece protobuf"
    ) as told:
        load_tokenizer(alone)
    assert "tiktoken" not in str(told.value)
    (alone / "tokenizer.model").write_bytes(b"\xff" * 50)
    with pytest.raises(InputError, match=r"tokenizer\.model: is no SentencePiece model"):
        load_tokenizer(alone)


def test_tiktoken_ranks_named_tokenizer_model(tmp_path):
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)] + [
        f"{base64.b64encode(b'th').decode()} 256"
    ]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"257": {"content": "<|end|>"}}, "eos_token": "<|end|>"})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("the<|end|>")["input_ids"] == [256, 101, 257] and tokenizer.eos_token_id == 257


@pytest.mark.skipif(not REAL.is_dir(), reason="the real vocabulary files are not there")
@pytest.mark.parametrize("name", ["llama2", "mistral-v3"])
def test_real_models_cut_as_sentencepiece_does(name, tmp_path):
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(str(REAL / f"{name}.model"))
    (tmp_path / "tokenizer.model").symlink_to(REAL / f"{name}.model")
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS[:-1]:
        assert tokenizer(text)["input_ids"] == [processor.bos_id(), *processor.encode(text)], text
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert [again(t)["input_ids"] for t in TEXTS] == [tokenizer(t)["input_ids"] for t in TEXTS]


def test_saved_tokenizers_keep_their_class_and_settings(tmp_path):
    small_folder(tmp_path / "in")
    given = json.loads((tmp_path / "in/tokenizer_config.json").read_text())
    assert given["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in given and "backend" not in given
    assert (
        given["additional_special_tokens"] == ["<|start|>", "<|sep|>", "<|end|>"]
        and "extra_special_tokens" not in given
    )
    settings_of(tmp_path / "in", added_tokens_decoder={"3": {"content": "<|start|>", "special": True}})
    for name, kept in (
        ("LlamaTokenizer", "LlamaTokenizer"), ("Qwen2TokenizerFast", "Qwen2TokenizerFast"), ("TokenizersBackend", "PreTrainedTokenizerFast"),
        ("PreTrainedTokenizerFast", "PreTrainedTokenizerFast"), (None, "PreTrainedTokenizerFast"),
    ):  # fmt: skip
        settings_of(
            tmp_path / "in",
            tokenizer_class=name,
            add_bos_token=False,
            legacy=True,
            auto_map={"AutoTokenizer": ["x.Y", None]},
        )
        save(load(tmp_path / "in"), tmp_path / "out", overwrite=True)
        out = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
        assert (
            out["tokenizer_class"] == kept
            and out["add_bos_token"] is False
            and out["legacy"] is True
            and "auto_map" not in out
        )
        assert {int(i): e["content"] for i, e in out["added_tokens_decoder"].items()}[
            5
        ] == "<|end|>"  # all of them, not one
        one, other = load_tokenizer(tmp_path / "in"), load_tokenizer(tmp_path / "out")
        assert [one(t)["input_ids"] for t in TEXTS] == [
            other(t)["input_ids"] for t in TEXTS
        ] and one.chat_template == other.chat_template
        assert one.all_special_tokens == other.all_special_tokens


def test_the_zoo_can_be_read_by_transformers_4(tmp_path):
    for name in ("target", "llama-source", "qwen-source", "gemma-source"):
        folder = model_path(f"zoo:{name}")
        settings, config = (json.loads((folder / f"{n}config.json").read_text()) for n in ("tokenizer_", ""))
        assert portable(settings) == settings and settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert (
            config["torch_dtype"] == config["dtype"] and config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        )
        assert AutoTokenizer.from_pretrained(folder).all_special_tokens == tokenizer_of(folder).all_special_tokens


BROKEN: dict[str, tuple[str, Any, str]] = {
    "no JSON": ("tokenizer.json", "{", "field 'tokenizer': cannot be loaded"),
    "a list": ("tokenizer.json", "[]", "field 'tokenizer': cannot be loaded"),
    "no model": ("tokenizer.json", "{}", "field 'tokenizer': cannot be loaded"),
    "unknown model": ("tokenizer.json", {"model": {"type": "Other", "vocab": {}}}, "field 'tokenizer': cannot be loaded"),
    "merges of unknown pieces": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}}, "field 'tokenizer': cannot be loaded"),
    "id of a text": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "field 'tokenizer': cannot be loaded"),
    "negative id": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "field 'tokenizer': cannot be loaded"),
    "settings of a list": ("tokenizer_config.json", [], "tokenizer_config.json: is not a JSON object"),
    "template of a number": ("tokenizer_config.json", {"chat_template": 5}, "field 'chat_template': is 5, not a list"),
    "template without a name": ("tokenizer_config.json", {"chat_template": [{"template": "x"}]}, r"field 'chat_template.0.name': is missing"),
    "template of numbers": ("tokenizer_config.json", {"chat_template": {"default": 1}}, "field 'chat_template.default': is 1, not a string"),
    "special token of a list": ("tokenizer_config.json", {"bos_token": ["<s>"]}, "field 'bos_token': is list of 1, not a string"),
    "special token of a number": ("tokenizer_config.json", {"eos_token": {"content": 2}}, "field 'eos_token.content': is 2, not a string"),
    "special tokens of a text": ("tokenizer_config.json", {"additional_special_tokens": "<a>"}, "field 'additional_special_tokens': is '<a>', not a list"),
    "id that is no number": ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "field 'added_tokens_decoder.x': is no id"),
    "id out of range": ("tokenizer_config.json", {"added_tokens_decoder": {"99999999": {"content": "a"}}}, "is no id of a token"),
    "id of another token": ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "<s>"}}}, "field '<s>': gives a token the id 7 that has the id 0"),
    "class of a number": ("tokenizer_config.json", {"tokenizer_class": 5}, "field 'tokenizer_class': is 5, not a string"),
    "length of a text": ("tokenizer_config.json", {"model_max_length": "512"}, "field 'model_max_length': is '512', not a number"),
    "side": ("tokenizer_config.json", {"padding_side": "top"}, "field 'padding_side': 'top' is not supported"),
    "map of a list": ("special_tokens_map.json", {"bos_token": [1]}, "special_tokens_map.json, field 'bos_token': is list of 1"),
    "added id of a text": ("added_tokens.json", {"<a>": "5"}, "added_tokens.json, field '<a>': is '5', not a whole number"),
    "added id out of range": ("added_tokens.json", {"<a>": 2**40}, "added_tokens.json, field '<a>': is 1099511627776, out of the range"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("tokenizers") / "whole")


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_tokenizer_files(kind, whole, tmp_path):
    name, content, said = BROKEN[kind]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((whole / file).read_bytes())
    if name == "tokenizer_config.json" and isinstance(content, dict):
        content = json.loads((tmp_path / name).read_text()) | content
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=said) as told:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(told.value) and len(str(told.value)) < 800


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json", "tokenizer.model"]
)
def test_tokenizer_files_that_never_end(name, whole, tmp_path):
    if name != "tokenizer.model":
        (tmp_path / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
        (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: is no regular file"):
        load_tokenizer(tmp_path)


def test_an_id_beyond_the_embedding(whole, tmp_path):
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = state["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    state["model"]["merges"] = [
        m for m in state["model"]["merges"] if "".join(m if isinstance(m, list) else m.split(" ")) != last
    ]
    vocab[last] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"field 'tokenizer': gives .* the id 5000, the embedding has only 340 rows"):
        load(tmp_path)
