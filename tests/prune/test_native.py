"""Pruned models with the tensors of their other blocks alone: against transformers, whose blocks are made to add nothing."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.models.config import Stack
from fusion_jax.models.families import config_from_hf, config_to_hf, pruned
from fusion_jax.models.folder import check_folder
from fusion_jax.prune.blocks import Block, parameters_of
from fusion_jax.prune.export import served
from fusion_jax.prune.scoring import Text, perplexity, score
from fusion_jax.sampling.ids import generate_ids
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_generation import NEW, STOP, prompts, theirs_greedy
from tests.small import compiled, doubled

pytestmark = pytest.mark.usefixtures("quick_compiler")

BLOCKS = {"attention": ("self_attn", "attention"), "mlp": ("mlp", "block_sparse_moe")}  # of layers, in transformers
NORMS = {"attention": ("input_layernorm",), "mlp": ("post_attention_layernorm",)}
OTHER_NORMS = {
    "gemma2": {
        "attention": ("input_layernorm", "post_attention_layernorm"),
        "mlp": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    },
    "olmo2": {"attention": ("post_attention_layernorm",), "mlp": ("post_feedforward_layernorm",)},
}
SETS = {
    "first": {Block("attention", 0), Block("mlp", 1)},
    "last": {Block("attention", 3), Block("mlp", 0)},
    "several": {Block(part, layer) for part, layer in [
        ("attention", 0), ("attention", 2), ("attention", 3), ("mlp", 1), ("mlp", 2)]},
}  # fmt: skip


def silenced(model: torch.nn.Module, removed: set[Block]) -> torch.nn.Module:
    """A model of transformers in which these blocks add nothing."""
    layers = next(module for name, module in model.named_modules() if re.search(r"(^|\.)layers$", name))
    for block in removed:
        (module,) = (m for name, m in layers[block.layer].named_children() if name in BLOCKS[block.part])

        def nothing(module, args, out):
            return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)

        module.register_forward_hook(nothing)
    return model


@pytest.mark.parametrize(("name", "lost"), [
    ("llama-gqa-tied", "first"), ("llama-gqa-tied", "last"), ("deepseek-v2", "several"),
    pytest.param("qwen2", "several", marks=pytest.mark.slow), pytest.param("gemma2", "several", marks=pytest.mark.slow),
    pytest.param("gpt-neox", "several", marks=pytest.mark.slow), pytest.param("mixtral", "several", marks=pytest.mark.slow),
    pytest.param("deepseek-v2", "first", marks=pytest.mark.slow), pytest.param("gemma2", "last", marks=pytest.mark.slow),
    pytest.param("phi3", "several", marks=pytest.mark.slow), pytest.param("olmo2", "several", marks=pytest.mark.slow),
    pytest.param("qwen3-moe-some-plain", "several", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_native_folder_is_the_model_without_its_blocks(name, lost, tmp_path):
    """Files without their tensors; logits, greedy tokens and their log-probs by the cache are those of transformers."""
    removed, layers = SETS[lost], 5 if name == "qwen3-moe-some-plain" else 4
    theirs = write_checkpoint(name, tmp_path / "hf", num_hidden_layers=layers)
    whole = fj.load(tmp_path / "hf")
    fj.save(served(whole, removed, "native"), tmp_path / "pruned")
    ours = fj.load(tmp_path / "pruned")
    check_files(name, tmp_path, removed)
    assert sum(x.size for x in jax.tree.leaves(ours.params)) == parameters_of(whole.config, removed)
    theirs, tokens = silenced(theirs, removed), np.random.default_rng(0).integers(3, 96, (3, 14))
    out = generate_ids(ours.params, ours.config, prompts(), max_new_tokens=NEW, stop_ids=[STOP], batch_size=4)
    texts = np.zeros((7, 32), np.int32)  # read at once, whole
    texts[:3, :14] = tokens
    for row, prompt, (completion,) in zip(texts[3:], prompts(), out, strict=True):
        assert completion.ids == [t for t in theirs_greedy(theirs, prompt) if t != STOP]
        row[: len(prompt) + len(completion.ids)] = prompt + completion.ids
    found = doubled(fj.logits, ours, texts)
    np.testing.assert_allclose(found, doubled(fj.logits, served(whole, removed), texts), atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(found[:3, :14], wanted, atol=1e-5 * max(1, abs(wanted).max()))
    logprobs = found[3:] - np.logaddexp.reduce(found[3:], -1, keepdims=True)
    for row, prompt, (completion,) in zip(logprobs, prompts(), out, strict=True):
        told = completion.ids + [STOP] * completion.finished
        scores = row[len(prompt) - 1 : len(prompt) - 1 + len(told)]
        assert completion.logprob == pytest.approx(float(scores[np.arange(len(told)), told].sum()), abs=1e-4)


def check_files(name, folder, removed):
    """The files of the pruned model hold the tensors of the whole one under their own names, but for the blocks'."""
    before, after = (load_file(folder / one / "model.safetensors") for one in ("hf", "pruned"))
    modules = {part: BLOCKS[part] + OTHER_NORMS.get(name, NORMS)[part] for part in BLOCKS}
    gone = {key for key in before for part, i in removed if re.search(rf"\.{i}\.({'|'.join(modules[part])})\.", key)}
    assert gone and after.keys() == before.keys() - gone
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key])


def test_other_readers_refuse_the_folder(tmp_path):
    """By its model_type. A class of the family that is forced on it finds nothing of its own, and shapes that differ."""
    write_checkpoint("llama-mha", tmp_path / "hf")
    fj.save(served(fj.load(tmp_path / "hf"), {Block("mlp", 1)}, "native"), tmp_path / "pruned")
    values = json.loads((tmp_path / "pruned/config.json").read_text())
    assert values["removed_blocks"] == [["mlp", 1]] and values["base_model_type"] == "llama"
    assert values["eos_token_id"] == values["base_config"]["eos_token_id"]
    for load in (transformers.AutoConfig.from_pretrained, transformers.AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="fusion_jax_pruned"):
            load(tmp_path / "pruned")
    assert transformers.LlamaConfig.from_pretrained(tmp_path / "pruned").hidden_size == 4096  # its default


def test_a_pruned_model_is_pruned_further_saved_again_and_given_in_other_forms(tmp_path):
    write_checkpoint("gemma2", tmp_path / "hf", num_hidden_layers=4)
    whole, tokens = fj.load(tmp_path / "hf"), np.random.default_rng(0).integers(3, 96, (2, 9))
    first, second = {Block("attention", 1), Block("mlp", 1)}, {Block("attention", 0), Block("mlp", 3)}
    fj.save(served(whole, first, "native"), tmp_path / "one")
    fj.save(served(fj.load(tmp_path / "one"), second, "native"), tmp_path / "two")
    at_once = served(whole, first | second, "native")
    again = fj.load(tmp_path / "two")
    assert again.config == at_once.config
    assert pruned.lost_of(again.config) == first | second and pruned.whole(again.config) == whole.config
    found = compiled(fj.logits, again, tokens)
    np.testing.assert_array_equal(found, compiled(fj.logits, at_once, tokens))
    fj.save(served(again, (), "hf"), tmp_path / "served")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "served", dtype=torch.float32).eval()
    assert theirs.config.num_hidden_layers == 3 and len(theirs.config.removed_blocks) == 4
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_model_of_no_folder_is_saved_too(tmp_path):
    """Without a config.json of its own, and where a stored head proves to be untied."""
    write_checkpoint("qwen2-windows", tmp_path / "hf", num_hidden_layers=4)
    whole = fj.load(tmp_path / "hf")
    lacking = served(whole, SETS["several"], "native")
    assert (
        config_from_hf(config_to_hf(lacking.config)) == lacking.config
    )  # windows of layers 1 to 3, where layer 2 is gone
    assert [stack.windows for stack in lacking.config.decoder] == [(), (5,), (5,), (5,)]
    bare = fj.Model(lacking.config, lacking.params)
    fj.save(bare, tmp_path / "pruned")
    tokens = np.random.default_rng(0).integers(3, 96, (2, 9))
    found = compiled(fj.logits, fj.load(tmp_path / "pruned"), tokens)
    np.testing.assert_array_equal(found, compiled(fj.logits, lacking, tokens))


@pytest.mark.parametrize(("change", "told"), [
    ({"removed_blocks": [["mha", 3]]}, "field 'removed_blocks': holds '.\"mha\", 3.', which is no block"),
    ({"removed_blocks": [["attention", 0]]}, "which is no block"), ({"removed_blocks": [["mlp", True]]}, "which is no block"),
    ({"removed_blocks": None}, "field 'removed_blocks': is missing"), ({"base_config": []}, "'base_config': is "),
    ({"removed_blocks": [["mlp", 1], ["mlp", 0]]}, "layers.0.*is a weight that this architecture does not have"),
    ({"removed_blocks": []}, "layers.1.*the weight is missing"),
])  # fmt: skip
def test_what_is_wrong_in_a_native_folder_is_named(change, told, tmp_path):
    write_checkpoint("llama-mha", tmp_path / "hf")
    fj.save(served(fj.load(tmp_path / "hf"), {Block("mlp", 1)}, "native"), tmp_path / "pruned")
    file = tmp_path / "pruned/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=told):
        check_folder(tmp_path / "pruned")


def test_int8(tmp_path):
    """Kernels of the blocks that are left are rounded as in the whole model."""
    write_checkpoint("llama-mha", tmp_path / "hf")
    removed = {Block("attention", 0), Block("mlp", 2)}
    fj.save(served(fj.load(tmp_path / "hf"), removed, "native"), tmp_path / "pruned")
    small, whole = fj.load(tmp_path / "pruned", dtype="int8"), fj.load(tmp_path / "hf", dtype="int8")
    text = Text(np.random.default_rng(0).integers(3, 96, (3, 12)).astype(np.int32))
    wanted = score(whole.params, whole.config, text, removed, ()).base
    rows = np.asarray(jax.nn.log_softmax(compiled(fj.logits, small, text.rows)))[:, :-1]
    found = -np.take_along_axis(rows, text.rows[:, 1:, None], 2)[..., 0].mean(1)
    assert perplexity(found) == pytest.approx(perplexity(wanted), rel=1e-5)


def test_stacks_are_cut_and_joined():
    stack = config_from_hf({
        "model_type": "gemma2", "vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 6,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "sliding_window": 5})  # fmt: skip
    runs = pruned.runs_without(stack, {("attention", 2), ("mlp", 2), ("mlp", 3), ("mlp", 4)})
    assert [(run.places, run.stack.windows, sorted(run.stack.lacks)) for run in runs] == [
        (slice(0, 2), (5, 0), []), (slice(2, 3), (5,), ["attention", "mlp"]), (slice(3, 5), (0, 5), ["mlp"]),
        (slice(5, 6), (), []),
    ]  # fmt: skip
    assert all(isinstance(run.stack, Stack) and run.name == "layers" for run in runs)
