"""Encoder-decoders and encoders against `transformers` in PyTorch: float32 within 1e-5 of the largest number, and files
that survive the trip."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import fusion_jax as fj
from fusion_jax.data.batches import Data, Example
from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import classify
from fusion_jax.models.parameters import init_params
from fusion_jax.runs.opening import open_run
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from tests.parity.test_logits import LENGTHS, assert_close, tokens
from tests.quick import FAST
from tests.small import compiled, small_model

T5: dict[str, Any] = {
    "vocab_size": 96, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0, "initializer_factor": 1.0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 96, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64, "init_std": 0.25,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
BERT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.25,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "t5": ("t5", T5, {"feed_forward_proj": "relu"}),
    "t5-1.1": ("t5", T5, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3}),
    "t5-wide-heads": ("t5", T5, {"feed_forward_proj": "gated-silu", "d_kv": 20, "num_heads": 3, "num_decoder_layers": 1}),
    "bart": ("bart", BART, {}),
    "bart-scaled": ("bart", BART, {"scale_embedding": True, "decoder_layers": 3, "decoder_start_token_id": 5}),
    "bart-uneven": ("bart", BART, {
        "encoder_attention_heads": 2, "decoder_attention_heads": 6, "decoder_ffn_dim": 64, "encoder_layers": 1,
        "activation_function": "gelu_new", "max_position_embeddings": 41}),
    "bert": ("bert", BERT, {}),
    "bert-types": ("bert", BERT, {"type_vocab_size": 4, "layer_norm_eps": 1e-5, "num_attention_heads": 6}),
    "bert-tanh": ("bert", BERT, {"hidden_act": "gelu_new", "num_hidden_layers": 3, "max_position_embeddings": 40}),
}  # fmt: skip
SEQ2SEQ = [name for name in CONFIGS if not name.startswith("bert")]
BERTS = [name for name in CONFIGS if name.startswith("bert")]
PREFIX = np.random.default_rng(5).integers(3, 96, (3, 17))


def write_model(name: str, folder, *, kind: Any = None, head: bool = True, **changes: Any) -> Any:
    """Random weights, norms and biases too; a head of its own where config.json says that nothing is tied."""
    family, base, options = CONFIGS[name]
    config = transformers.AutoConfig.for_model(family, **{**base, **options, **changes})
    torch.manual_seed(0)
    kind = kind or (transformers.AutoModel if family == "bert" else transformers.AutoModelForSeq2SeqLM)
    model = kind.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key.lower() or key.endswith("bias") or "relative_attention_bias" in key:
                value.add_(0.3 * torch.randn_like(value))
        if head and options.get("tie_word_embeddings") is False:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    return model


def their_logits(model: Any, rows: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    mask = torch.tensor(np.arange(rows.shape[1]) < LENGTHS[: len(rows), None], dtype=torch.long)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(rows), attention_mask=mask, decoder_input_ids=torch.tensor(prefix))
    return out.logits.numpy()


def same_bytes(one, other) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    before.pop("final_logits_bias", None)
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_logits_and_files(name, tmp_path):
    """An encoder's padding, distances beyond the last range, saved and read there, and by a config.json of our own."""
    theirs = write_model(name, tmp_path / "hf")
    ours, rows = fj.load(tmp_path / "hf"), tokens()
    expected = their_logits(theirs, rows, PREFIX)
    assert_close(compiled(fj.logits, ours, rows, LENGTHS, decoder_tokens=PREFIX), expected)
    fj.save(ours, tmp_path / "saved")
    same_bytes(tmp_path / "hf", tmp_path / "saved")
    fj.save(dataclasses.replace(ours, hf_config={}, generation={}), tmp_path / "new")
    for folder in ("saved", "new"):
        again = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / folder, dtype=torch.float32, attn_implementation="eager"
        )
        np.testing.assert_allclose(their_logits(again.eval(), rows[:1], PREFIX[:1]), expected[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["t5-1.1", "bart-scaled"])
def test_greedy_equals_transformers(name, tmp_path):
    """Rows of uneven length in one batch; every log-probability is that of the model without a cache.

    No more layers in the decoder than in the encoder: transformers' cache of T5 has no room for them.
    """
    theirs = write_model(name, tmp_path, **({"num_decoder_layers": 2} if name.startswith("t5") else {}))
    ours, new, stop = fj.load(tmp_path), 10, theirs.config.eos_token_id
    prompts = [np.random.default_rng(1).integers(3, 96, n).tolist() for n in (3, 17, 9)]
    out = generate_ids(ours.params, ours.config, prompts, max_new_tokens=new, stop_ids=[stop], batch_size=4)
    rows, prefixes = np.zeros((3, 17), np.int32), np.full((3, new), ours.config.start)
    for row, prefix, prompt, (completion,) in zip(rows, prefixes, prompts, out, strict=True):
        found = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=new,
            do_sample=False, num_beams=1,
        )[0, 1:].tolist()  # fmt: skip
        assert completion.ids == [token for token in found if token != stop]
        row[: len(prompt)] = prompt
        prefix[1 : 1 + len(completion.ids)] = completion.ids[: new - 1]

    def scored(rows, prefixes):
        return fj.logits(ours, rows, jnp.asarray([3, 17, 9]), decoder_tokens=prefixes)

    whole = np.asarray(jax.jit(scored, compiler_options=FAST)(rows, prefixes))
    logprobs = whole - np.logaddexp.reduce(whole, -1, keepdims=True)
    for own, (completion,) in zip(logprobs, out, strict=True):
        written = completion.ids + [stop] * completion.finished
        assert completion.logprob == pytest.approx(own[np.arange(len(written)), written].sum(), abs=1e-3)


def test_text_in_and_out_of_an_encoder_decoder(tmp_path):
    """The encoder reads the prompt as the tokenizer gives it, whatever `chat` says."""
    tokenizer = small_model().tokenizer
    config = config_from_hf(
        {"model_type": "t5", **T5, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    )
    config = dataclasses.replace(config, initializer_range=0.3)
    fj.save(fj.Model(config, init_params(config, jax.random.key(0)), tokenizer), tmp_path)
    model, prompts = fj.load(tmp_path), ["What is 12 + 30?", "No."]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    found = generate_ids(model.params, model.config, ids, max_new_tokens=6, stop_ids=[tokenizer.eos_token_id])
    expected = [[tokenizer.decode(c.ids, skip_special_tokens=True) for c in row] for row in found]
    assert fj.generate(model, prompts, max_new_tokens=6) == expected and any(text for row in expected for text in row)


@pytest.mark.parametrize("name", BERTS)
def test_hidden_states_of_bert(name, tmp_path):
    theirs = write_model(name, tmp_path / "hf")
    ours, rows = fj.load(tmp_path / "hf"), tokens()
    types = np.random.default_rng(2).integers(0, ours.config.embed.types, rows.shape)
    mask = np.arange(40) < LENGTHS[:, None]
    with torch.no_grad():
        expected = theirs(*map(torch.tensor, (rows, mask.astype(int), types)))
        plain = theirs(torch.tensor(rows[:1]))
    hidden, summary = fj.encode(ours, rows, LENGTHS, types=types)
    assert_close(np.asarray(hidden)[mask], expected.last_hidden_state.numpy()[mask])
    assert_close(np.asarray(summary), expected.pooler_output.numpy())
    assert_close(np.asarray(fj.encode(ours, rows[:1])[0]), plain.last_hidden_state.numpy())
    fj.save(ours, tmp_path / "saved")
    same_bytes(tmp_path / "hf", tmp_path / "saved")
    fj.save(dataclasses.replace(ours, hf_config={}), tmp_path / "new")
    again = transformers.AutoModel.from_pretrained(tmp_path / "new", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor(rows[:1])).last_hidden_state, plain.last_hidden_state)


def test_bert_as_a_classifier_and_under_older_names(tmp_path):
    """A classifier keeps "bert." before its body; TensorFlow's gamma and beta, and heads of training that are no part
    of the encoder."""
    theirs = write_model("bert", tmp_path / "hf", kind=transformers.AutoModelForSequenceClassification, num_labels=3)
    rows = tokens()
    mask = torch.tensor(np.arange(40) < LENGTHS[:, None], dtype=torch.long)
    with torch.no_grad():
        expected = theirs(torch.tensor(rows), attention_mask=mask)
    ours = fj.load(tmp_path / "hf")
    assert_close(compiled(classify, ours, rows, LENGTHS), expected.logits.numpy())
    fj.save(ours, tmp_path / "saved")
    same_bytes(tmp_path / "hf", tmp_path / "saved")

    masked = write_model("bert", tmp_path / "old", kind=transformers.AutoModelForPreTraining)
    file, older = (
        tmp_path / "old/model.safetensors",
        {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
    )
    values = {}
    for name, value in load_file(file).items():
        for new, old in older.items():
            name = name.replace(new, old)
        values[name] = value
    save_file(values, file, {"format": "pt"})
    with torch.no_grad():
        hidden = masked.bert(torch.tensor(rows), attention_mask=mask).last_hidden_state.numpy()
    old = fj.load(tmp_path / "old")
    fj.save(old, tmp_path / "encoder")
    assert json.loads((tmp_path / "encoder/config.json").read_text())["architectures"] == ["BertModel"]
    found = np.asarray(fj.encode(old, rows, LENGTHS)[0])
    real = np.arange(40) < LENGTHS[:, None]
    assert_close(found[real], hidden[real])


@pytest.mark.parametrize(("name", "end"), [("t5-1.1", 1), pytest.param("bart-scaled", 2, marks=pytest.mark.slow)])
def test_encoder_decoders_as_classifiers(name, end, tmp_path):
    """The decoder reads the text once more; its state at the end of the text is scored. In a batch, and saved."""
    changes = {"num_labels": 3, "num_decoder_layers": 2} if name.startswith("t5") else {"num_labels": 3}
    kind = transformers.AutoModelForSequenceClassification
    theirs = write_model(name, tmp_path / "hf", kind=kind, head=False, **changes)
    rows = np.where(tokens() == end, end + 2, tokens())
    rows[np.arange(3), LENGTHS - 1] = end
    mask = torch.tensor(np.arange(40) < LENGTHS[:, None], dtype=torch.long)
    with torch.no_grad():
        expected = theirs(torch.tensor(rows), attention_mask=mask).logits.numpy()
    ours = fj.load(tmp_path / "hf")
    assert_close(compiled(classify, ours, rows, LENGTHS), expected)
    fj.save(ours, tmp_path / "saved")
    same_bytes(tmp_path / "hf", tmp_path / "saved")
    fj.save(dataclasses.replace(ours, hf_config={}), tmp_path / "new")
    again = kind.from_pretrained(tmp_path / "new", dtype=torch.float32).eval()
    with torch.no_grad():
        found = again(torch.tensor(rows), attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_bare_bart_with_copies_of_its_embedding(tmp_path):
    """facebook/bart-base holds the bare model, and older files each side's copy of the embedding."""
    theirs = write_model("bart", tmp_path)
    file = tmp_path / "model.safetensors"
    values = {
        name.removeprefix("model."): value for name, value in load_file(file).items() if name.startswith("model.")
    }
    values |= {f"{side}.embed_tokens.weight": values["shared.weight"].copy() for side in ("encoder", "decoder")}
    save_file(values, file, {"format": "pt"})
    expected = their_logits(theirs, tokens(), PREFIX)
    assert_close(compiled(fj.logits, fj.load(tmp_path), tokens(), LENGTHS, decoder_tokens=PREFIX), expected)
    values["decoder.embed_tokens.weight"][3, 4] += 1
    save_file(values, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"'model\.decoder.embed_tokens\.weight': differs from model\.shared\.weight"):
        fj.load(tmp_path)
    del values["decoder.embed_tokens.weight"]
    save_file(values | {"final_logits_bias": np.ones((1, 96), np.float32)}, file, {"format": "pt"})
    with pytest.raises(InputError, match="'final_logits_bias': holds numbers other than zero"):
        fj.load(tmp_path)


def test_the_repetition_penalty_is_that_of_what_is_written(tmp_path):
    """As in transformers, what the encoder reads is not penalised."""
    theirs = write_model("bart", tmp_path)
    ours, prompt = fj.load(tmp_path), np.random.default_rng(6).integers(3, 96, 20).tolist()
    sampler = Sampler(temperature=0.0, repetition_penalty=1.7)
    ((found,),) = generate_ids(ours.params, ours.config, [prompt], max_new_tokens=10, sampler=sampler, stop_ids=[2])
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, num_beams=1, repetition_penalty=1.7
    )[0, 1:].tolist()  # fmt: skip
    assert found.ids == [token for token in expected if token != 2] and len(set(found.ids)) > 3


def test_rows_that_are_not_an_encoder_s_are_not_trained_on(tmp_path):
    config = config_from_hf({"model_type": "t5", **T5})
    model = fj.Model(config, init_params(config, jax.random.key(0)))
    settings = TrainSettings(OptimizerSettings(warmup_ratio=0.0), batch_size=2, micro_batches=1, remat="none")
    right = Example((tuple([5, 6, 7, config.start, 8, 9]),), (4,))
    for wrong, options, told in (
        (Example(((5, 6, 7, 8),), (2,)), {}, "the decoder's first token 0"),
        (Example(((0, 8, 9),), (1,)), {}, "is no text of the encoder"), (right, {"pack_tokens": 64}, "packs rows"),
    ):  # fmt: skip
        data, own = Data([right, wrong]), dataclasses.replace(settings, **options)
        with open_run(tmp_path / "run", {}, resume=False) as run, pytest.raises(InputError, match=told):
            optimise(model, data, objectives.sft(), own, run)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    with open_run(tmp_path / "good", {}, resume=False) as run:
        trained = optimise(model, Data([right, right]), objectives.sft(), settings, run)
    assert jax.tree.structure(trained.params) == jax.tree.structure(model.params)


def test_what_an_architecture_cannot_do_is_refused(tmp_path):
    write_model("bert", tmp_path / "bert")
    write_model("t5", tmp_path / "t5")
    bert, t5, rows = fj.load(tmp_path / "bert"), fj.load(tmp_path / "t5"), jnp.ones((1, 4), int)
    with pytest.raises(InputError, match="bert is an encoder, without logits"):
        fj.logits(bert, rows)
    with pytest.raises(InputError, match="bert is an encoder, which writes nothing"):
        generate_ids(bert.params, bert.config, [[5]], max_new_tokens=1)
    with pytest.raises(InputError, match="'decoder_tokens': t5 has a decoder whose tokens are missing"):
        fj.logits(t5, rows)
    with pytest.raises(InputError, match="no sequence-classification head"):
        classify(t5, rows, np.asarray([4]))
    with pytest.raises(InputError, match="'tokens': a row has 65 tokens, bert reads 64"):
        fj.encode(bert, jnp.ones((1, 65), int))
    for call, told in (
        (lambda: fj.encode(bert, rows, types=[[0, 1, 2, 0]]), "'types': holds 2, out of the range from 0 to 1"),
        (lambda: fj.encode(bert, rows, types=[[0, 1, 1]]), r"'types': has the shape \(1, 3\), tokens have \(1, 4\)"),
        (lambda: fj.encode(t5, rows, types=rows * 0), "Leave it out"),
        (lambda: fj.encode(bert, [[1, 2], [3]]), "'tokens': has rows of several lengths"),
        (lambda: fj.encode(bert, torch.tensor([[1, 96]])), "'tokens': holds 96, out of the range from 0 to 95"),
        (lambda: fj.encode(bert, [[1, -1]]), "'tokens': holds -1"),
        (lambda: fj.encode(bert, rows, np.ones((1, 4), int)), "'lengths': is int64\\[1, 4\\], not one number a row"),
        (lambda: fj.encode(bert, rows, [4, 4]), "'lengths': has 2 numbers for 1 rows"),
        (lambda: fj.encode(bert, rows, [5]), "'lengths': holds 5"),
        (lambda: fj.logits(t5, rows, decoder_tokens=[[0], [0]]), "'decoder_tokens': has 2 rows, there are 1 texts"),
        (lambda: fj.load(tmp_path / "t5", dtype="int4"), "'dtype': 'int4' is no dtype of weights"),
        (lambda: fj.load(tmp_path / "t5", dtype="fp16"), "'dtype': 'fp16' is no dtype of weights"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=told):
            call()
    masked = write_model("bert", tmp_path / "masked", kind=transformers.AutoModelForMaskedLM)
    with pytest.raises(
        InputError, match=r"'pooler.dense.weight': the weight is missing.* or take a model that has a pooler"
    ):
        fj.load(tmp_path / "masked")
    assert masked.config.model_type == "bert"
