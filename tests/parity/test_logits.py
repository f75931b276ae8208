"""float32 logits within 1e-5 (of the largest logit) of `transformers` in PyTorch, and files that survive the trip."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.numpy import load_file

from fusion_jax.models.attention import Context
from fusion_jax.models.decoder import forward
from fusion_jax.models.folder import classify, load, logits, save
from tests.parity.checkpoints import CONFIGS, write_checkpoint
from tests.quick import FAST, WHOLE
from tests.small import compiled

TOLERANCE = 1e-5
# The first configuration of each family, which is compiled as users compile.
FIRST = set({family: name for name, (family, _) in reversed(CONFIGS.items())}.values())
# Those whose config.json, as we write it for a model that never had one, is loaded in `transformers` with these logits.
NEW_FILES = (
    "llama-3.1", "llama-yarn", "mistral-window", "qwen2-windows", "gemma", "gemma2", "qwen3-windows-yarn", "gemma3",
    "gemma3-kinds-yarn", "olmo2-yarn", "glm", "glm4-mha-quarter", "phi3-window-gqa", "phi3-longrope-beyond", "gpt-neox",
    "gpt-neox-in-turn", "gpt-neox-no-bias-linear", "mixtral-window-three-of-five", "qwen3-moe", "qwen3-moe-some-plain",
    "deepseek-v2", "deepseek-v2-bias-tied", "mpt-clipped-6-heads", "mpt-untied-3-heads",
)  # fmt: skip
LENGTHS = np.asarray([40, 23, 5])


def tokens() -> np.ndarray:
    rows = np.random.default_rng(3).integers(3, 96, (3, 40))
    return np.where(np.arange(40) < LENGTHS[:, None], rows, 0)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_files_and_cache(name, tmp_path):
    """Padding; positions beyond the original rotary length; windows shorter than the text; save; cached keys."""
    theirs = write_checkpoint(name, tmp_path / "hf")
    ours = load(tmp_path / "hf")
    rows = tokens()
    mask = np.arange(40) < LENGTHS[:, None]
    with torch.no_grad():
        expected = theirs(torch.tensor(rows), attention_mask=torch.tensor(mask, dtype=torch.long)).logits.numpy()
    assert_close(compiled(logits, ours, rows, LENGTHS, options=WHOLE if name in FIRST else None)[mask], expected[mask])
    if name == "llama-mha":
        assert_close(np.asarray(logits(ours, rows, LENGTHS))[mask], expected[mask])  # operation by operation

    save(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("hf", "ours"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and value.tobytes() == after[key].tobytes(), key
    if name in NEW_FILES:
        save(dataclasses.replace(ours, hf_config={}, generation={}), tmp_path / "new")
    for folder in ("ours", "new")[: 1 + (name in NEW_FILES)]:
        again = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / folder, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(torch.tensor(rows[:1])).logits, torch.tensor(expected[:1]))

    if name not in ("llama-dynamic", "phi3-longrope-beyond"):  # whose frequencies depend on the length seen so far
        cached_equals_uncached(ours, rows)


def cached_equals_uncached(model, rows):
    """The first 20 tokens as shared context of two continuations a row, then one token on top of both.

    This package beside itself, compiled with few optimisations.
    """
    read = jax.jit(forward, static_argnums=1, static_argnames="keep", compiler_options=FAST)
    whole, kept = read(model.params, model.config, jnp.asarray(rows), keep=True)
    places = jnp.broadcast_to(jnp.arange(40), (3, 40))  # of which the context takes the first 20
    part = Context(kept, places, jnp.full(3, 20))
    rest = jnp.repeat(jnp.asarray(rows[:, 20:]), 2, 0)
    positions = jnp.broadcast_to(jnp.arange(20, 40), rest.shape)
    continued = read(model.params, model.config, rest, positions=positions, context=(part,))
    scale = np.abs(whole).max()
    np.testing.assert_allclose(continued[::2], whole[:, 20:], atol=TOLERANCE * scale)
    np.testing.assert_allclose(continued[1::2], whole[:, 20:], atol=TOLERANCE * scale)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("llama-gqa-tied", 1),
        ("llama-gqa-tied", 3),
        ("gemma3", 3),
        ("phi3", 1),
        ("glm4", 2),
        ("gpt-neox", 1),
        ("mixtral", 1),
        ("qwen3-moe", 3),
        ("deepseek-v2", 2),
        ("mpt", 2),
    ],
)
def test_sequence_classification(name, labels, tmp_path):
    theirs = write_checkpoint(name, tmp_path, classifier=True, num_labels=labels)
    rows = tokens()
    with torch.no_grad():
        expected = theirs(torch.tensor(rows), attention_mask=torch.tensor(rows != 0, dtype=torch.long)).logits
    assert_close(compiled(classify, load(tmp_path), rows, LENGTHS), expected.numpy())


def test_old_config_form_and_half_precision(tmp_path):
    """`rope_theta` / `rope_scaling` at the top level, weights in bfloat16: same numbers, same bytes."""
    write_checkpoint("llama-3.1", tmp_path / "new").to(torch.bfloat16).save_pretrained(tmp_path / "old")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old", dtype=torch.float32).eval()
    file = tmp_path / "old" / "config.json"
    values = json.loads(file.read_text())
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": values.pop("dtype")}
    file.write_text(json.dumps(values))
    ours = load(tmp_path / "old", dtype=jnp.float32)
    rows = tokens()[:1]
    with torch.no_grad():
        expected = theirs(torch.tensor(rows)).logits.numpy()
    assert_close(compiled(logits, ours, rows), expected)
    save(ours, tmp_path / "saved")
    before, after = (safetensors.torch.load_file(tmp_path / d / "model.safetensors") for d in ("old", "saved"))
    assert before.keys() == after.keys() and {v.dtype for v in after.values()} == {torch.bfloat16}
    assert all(torch.equal(value, after[key]) for key, value in before.items())
