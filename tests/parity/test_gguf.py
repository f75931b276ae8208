"""GGUF files: tiny ones against transformers in PyTorch, SmolLM2 as it is published, and files that are refused."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import fusion_jax as fj
from fusion_jax import InputError
from fusion_jax.models import gguf_model
from fusion_jax.models.folder import check_folder, load, logits, save
from fusion_jax.models.gguf_header import read_gguf_header
from fusion_jax.models.gguf_model import hf_entries
from fusion_jax.models.tokenizers import tokenizer_of
from tests.parity.checkpoints import write_checkpoint
from tests.parity.gguf_files import sentencepiece, write_gguf
from tests.small import compiled

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 260,
    "initializer_range": 0.06,
}  # fmt: skip
ROWS = np.random.default_rng(3).integers(3, 90, (2, 24))


def of_torch(folder: Path, **more: Any) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **more
    )
    with torch.no_grad():
        return model.eval()(torch.tensor(ROWS)).logits.numpy()


def assert_close(actual: Any, expected: np.ndarray) -> None:
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1", "Q6_K"])
def test_llama_as_transformers_reads_the_same_file(kind, tmp_path):
    """Numbers bit for bit, logits, tokenizer; saved, a folder that transformers reads."""
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf", kind, tokenizer=True)
    ours = load(file, dtype="float32")
    expected = of_torch(tmp_path, gguf_file=file.name)
    assert_close(compiled(logits, ours, ROWS), expected)

    save(ours, tmp_path / "ours", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    stored = load_file(tmp_path / "ours/model.safetensors")
    for name, value in theirs.state_dict().items():
        if name in stored:
            assert np.array_equal(stored[name].astype(np.float32), value.numpy()), name
    assert_close(of_torch(tmp_path / "ours"), expected)
    assert ours.config == check_folder(tmp_path / "ours")
    assert ours.config == replace(check_folder(tmp_path / "hf"), initializer_range=0.02)

    text = "hello <|im_end|> naïve 融合 🤗\n  x = 1"
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for one in (ours.tokenizer, tokenizer_of(file), again):
        assert one(text)["input_ids"] == reader(text)["input_ids"]
        assert one.eos_token == "<|im_end|>" and one.chat_template == reader.chat_template


@pytest.mark.parametrize("name", ["llama-gqa-tied", "gemma2", "phi3"])
def test_sentencepiece_vocabularies_are_those_of_transformers(name, tmp_path):
    write_checkpoint(name, tmp_path / "hf", vocab_size=280, num_hidden_layers=1)
    more = sentencepiece(spaces=name == "gemma2")
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf", more=more)
    ours, theirs = tokenizer_of(file), transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert len(ours) == 280 and ours.convert_ids_to_tokens(2) == ours.bos_token == "<bos>"
    for text in ("hello  hello x=1\n\n", "  naïve 融合 🤗<eos> hel<unused0>lo", "", "\thelo"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])


def test_control_tokens_of_other_letters_keep_their_ids(tmp_path):
    """As DeepSeek's in Qwen2: transformers spells them in bytes, llama.cpp takes them whole."""
    write_checkpoint("qwen2", tmp_path / "hf", vocab_size=260, num_hidden_layers=1)
    plain = write_gguf(tmp_path / "hf", tmp_path / "plain.gguf", tokenizer=True)
    tokens = [*read_gguf_header(plain).metadata["tokenizer.ggml.tokens"][:258], "<｜User｜>", "<｜end▁of▁sentence｜>"]
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf", tokenizer=True, more={"tokenizer.ggml.tokens": tokens})
    ours = tokenizer_of(file)
    assert ours("hel<｜User｜>l<｜end▁of▁sentence｜>")["input_ids"] == [257, 258, ours("l")["input_ids"][0], 259]
    assert len(ours) == 260 and ours.eos_token_id == 259
    assert ours.decode([258, 257], skip_special_tokens=True) == "hel"


FAMILIES: dict[str, dict[str, Any]] = {
    "llama-mqa-bias-wide-heads": {"mlp_bias": False}, "llama-linear": {}, "qwen2": {},
    "qwen3": {}, "gemma-mqa": {}, "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    "gemma3": {"query_pre_attn_scalar": 16}, "phi3-window-gqa": {},
    "phi3": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_numbers_are_those_of_the_folder_that_was_converted(name, tmp_path):
    """Without quantisation: the config.json, and the logits of the original folder in PyTorch.

    What transformers reads from a GGUF file is no reference here: it leaves out soft caps, windows and scalings.
    """
    write_checkpoint(name, tmp_path / "hf", **FAMILIES[name])
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    ours = load(file)
    assert_close(compiled(logits, ours, ROWS), of_torch(tmp_path / "hf"))
    wanted = replace(check_folder(tmp_path / "hf"), initializer_range=0.02)
    assert ours.config == check_folder(file) == wanted
    save(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("hf", "ours"))
    assert before.keys() == after.keys()
    for key in before:  # Gemma's norms are stored with 1 added
        np.testing.assert_allclose(after[key], before[key], atol=2e-7 if name.startswith("gemma") else 0)


def test_scalings_that_are_stored_as_divisors(tmp_path):
    """Llama 3.1's and LongRoPE's, the tensors that llama.cpp's converter writes for them."""
    write_checkpoint("llama-3.1", tmp_path / "llama", max_position_embeddings=131072, head_dim=24, rope_parameters={
        "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192})  # fmt: skip
    waves = 2 * np.pi * 5e5 ** (np.arange(0, 24, 2) / 24)
    smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
    divisors = np.where(waves < 2048, 1, np.where(waves > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    file = write_gguf(
        tmp_path / "llama", tmp_path / "m.gguf", tensors=lambda t: t.update({"rope_freqs.weight": divisors})
    )
    assert load(file).config.positions == check_folder(tmp_path / "llama").positions
    divisors[3] = 1.7
    broken = write_gguf(
        tmp_path / "llama", tmp_path / "b.gguf", tensors=lambda t: t.update({"rope_freqs.weight": divisors})
    )
    with pytest.raises(InputError, match=r"b.gguf, field 'rope_freqs.weight': scales the rotary frequencies"):
        check_folder(broken)

    write_checkpoint("phi3-longrope-within", tmp_path / "phi")
    short, long = np.asarray([1.0, 1.1, 1.2, 1.3, 1.4, 1.5]), np.asarray([1.0, 1.5, 2.0, 3.0, 5.0, 8.0])
    file = write_gguf(
        tmp_path / "phi", tmp_path / "p.gguf", more={"phi3.rope.scaling.original_context_length": 48},
        tensors=lambda t: t.update({"rope_factors_short.weight": short, "rope_factors_long.weight": long}),
    )  # fmt: skip
    assert_close(compiled(logits, load(file), ROWS), of_torch(tmp_path / "phi"))


def test_slices_are_those_of_the_whole_tensor(tmp_path):
    """Rows of an interleaved tensor, columns, and parts of a fused tensor, quantised and not."""
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    entries = hf_entries(write_gguf(tmp_path / "hf", tmp_path / "m.gguf", "Q8_0"))
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        whole = entries[name].read()
        assert np.array_equal(whole, entries[name].mapped()) and whole.dtype == entries[name].dtype
        for index in [(slice(3, 40),), (slice(0, 8), slice(5, 9)), (slice(None), slice(1, 2)), ()]:
            index = index[: whole.ndim]
            assert np.array_equal(entries[name].read(index), whole[index])


def test_what_is_said_and_refused(tmp_path, caplog, monkeypatch):
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf", "Q4_1", tokenizer=True)
    with caplog.at_level(logging.WARNING, "fusion_jax"):
        model = load(file, dtype="bfloat16")
    size = sum(2 * leaf.size for leaf in _leaves(model.params)) / 1e6
    assert f"MB of F32, Q4_1 become {size:.1f} MB of bfloat16" in caplog.text
    whole, rounded = load(file), load(file, dtype="int8")
    kernels = sum(x.size for x in jax.tree.leaves(rounded.params) if x.dtype == np.int8)
    told = 4 * sum(x.size for x in jax.tree.leaves(whole.params)) - 3 * kernels
    assert f"become {told / 1e6:.1f} MB of int8 and float32" in caplog.text
    monkeypatch.setattr(gguf_model, "available_memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"m.gguf: its weights are 3.4 MB in float32, 1.0 MB of memory are free"):
        load(file)
    with pytest.raises(InputError, match=r"m.gguf: is a GGUF file, which a merge does not read. Save it as a folder"):
        fj.merge.merge({"merge_method": "linear", "models": [{"model": str(file), "parameters": {"weight": 1.0}}]}, tmp_path / "o")  # fmt: skip
    with pytest.raises(InputError, match=rf"holds a GGUF file, no Hugging Face model. Give {file}"):
        load(tmp_path)


def _leaves(tree: Any) -> list[Any]:
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"llama.rope.scaling.type": "ntk"}, r"'llama.rope.scaling.type': 'ntk' is not supported"),
    ({"llama.expert_count": 8}, r"'llama.expert_count': is 8"),
    ({"llama.attention.clamp_kqv": 8.0}, r"'llama.attention.clamp_kqv': is not known"),
    ({"llama.attention.head_count": "four"}, r"'llama.attention.head_count': is 'four', not a whole number"),
    ({"llama.attention.head_count_kv": 3}, r"'llama.attention.head_count_kv': is 3, which does not divide"),
    ({"llama.block_count": 3}, r"'blk.2.attn_norm.weight': the weight is missing"),
    ({"llama.feed_forward_length": 128}, r"'blk.0.ffn_gate.weight': has shape \(256, 256\)"),
    ({"llama.attention.value_length": 8}, r"'llama.attention.value_length': is not 64"),
    ({"general.architecture": "mamba"}, r"'general.architecture': architecture 'mamba' is not read.*Known: llama"),
    ({"split.count": 3, "split.no": 1}, r"'split.count': is part 2 of 3 of a model.*llama-gguf-split"),
    ({"general.alignment": 48}, r"'general.alignment': is 48, not a power of two"),
    ({"tokenizer.ggml.tokens": [1, 2, 3]}, r"'tokenizer.ggml.token"),
    ({"tokenizer.ggml.eos_token_id": 4000}, r"'tokenizer.ggml.eos_token_id': is 4000, out of the range"),
    ({"tokenizer.ggml.model": "wordpiece"}, r"'tokenizer.ggml.model': cannot be built .*wordpiece"),
]


def test_metadata_that_do_not_fit(tmp_path):
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    for number, (more, said) in enumerate(BROKEN):
        file = write_gguf(tmp_path / "hf", tmp_path / f"{number}.gguf", more=more, tokenizer=True)
        with pytest.raises(InputError, match=rf"{number}.gguf, field {said}"):
            load(file)


def test_tensors_that_do_not_fit(tmp_path):
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    extra = np.ones((32, 32), np.float32)
    for number, (change, said) in enumerate((
        (lambda t: t.pop("blk.1.ffn_up.weight"), r"'blk.1.ffn_up.weight': the weight is missing"),
        (lambda t: t.pop("token_embd.weight"), r"'token_embd.weight': the tensor is missing"),
        (lambda t: t.update({"blk.0.ffn_gate_inp.weight": extra}), r"'blk.0.ffn_gate_inp.weight': is a weight that"),
    )):  # fmt: skip
        file = write_gguf(tmp_path / "hf", tmp_path / f"{number}.gguf", tensors=change)
        for use in (load, check_folder):
            with pytest.raises(InputError, match=rf"{number}.gguf, field {said}"):
                use(file)


def test_damaged_files(tmp_path):
    """Cut anywhere, or with lengths beyond the end: one error that names the file, at once."""
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **{**SIZES, "num_hidden_layers": 1})
    whole = write_gguf(tmp_path / "hf", tmp_path / "m.gguf", "Q4_0", tokenizer=True).read_bytes()
    start = read_gguf_header(tmp_path / "m.gguf").start
    bad = tmp_path / "bad.gguf"
    for length in (0, 3, 4, 7, 8, 20, 24, 40, *range(60, start, 397), start, start + 1000, len(whole) - 40):
        bad.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"bad.gguf.*(cut short|not a GGUF file)"):
            load(bad)
    key = whole.index(b"general.architecture")
    for at, value, said in (
        (4, struct.pack("<I", 1), "'version': is 1"), (4, struct.pack(">I", 3), "'version': is big-endian"),
        (8, struct.pack("<Q", 2**60), "cut short or damaged"), (16, struct.pack("<Q", 2**60), "cut short or damaged"),
        (key - 8, struct.pack("<Q", 2**63), "cut short or damaged"), (key, b"\xff\xfe", "not UTF-8"),
        (key + 20, struct.pack("<I", 77), "'general.architecture': has type 77"),
        (0, b"GGML", "is not a GGUF file"),
    ):  # fmt: skip
        bad.write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(InputError, match=f"bad.gguf.*{said}"):
            load(bad)
    name = whole.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    for kind, said in ((99, "has quantisation number 99"), (24, "has quantisation I8, which is not read")):
        bad.write_bytes(whole[:name] + struct.pack("<I", kind) + whole[name + 4 :])
        with pytest.raises(InputError, match=f"bad.gguf, field 'blk.0.attn_q.weight': {said}"):
            load(bad)
    bad.write_bytes(whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"))
    with pytest.raises(InputError, match=r"'blk.0.attn_k.weight': the tensor stands twice"):
        load(bad)


def test_without_the_package_it_is_told(tmp_path, monkeypatch):
    import builtins

    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"m.gguf: a GGUF file needs the package gguf.*pip install gguf"):
        load(file)


@pytest.mark.slow
def test_pytorch_is_not_needed(tmp_path):
    """In a process that cannot import it."""
    write_checkpoint("llama-gqa-tied", tmp_path / "hf", **SIZES)
    file = write_gguf(tmp_path / "hf", tmp_path / "m.gguf", "Q8_0", tokenizer=True)
    program = f"""
import importlib.util, sys
sys.modules["torch"], found = None, importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torch" else found(name, *rest)
import fusion_jax as fj
print(len(fj.load({str(file)!r}).tokenizer))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "260\n", done.stderr
