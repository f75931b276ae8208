"""Fields of config.json of every family: of the right type and within bounds, or refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import pytest
import transformers

from fusion_jax import InputError
from fusion_jax.models import families
from fusion_jax.models.families import FAMILIES, config_from_hf, config_to_hf, llama, pruned
from fusion_jax.models.families.rotary import with_both_forms
from fusion_jax.models.folder import check_folder
from fusion_jax.models.identity import described
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.rotary import Rope, rotary_tables
from tests.parity import test_encoders as encoders
from tests.parity.checkpoints import CONFIGS, SMALL, write_checkpoint

ODD: list[Any] = [
    "x", "8", "", "nan", [], [1], ["x"], {}, {"a": 1}, {"x": {"y": [0]}}, True, False, None, -1, -0.5, 0, 0.5, 1, 3, 2**31,
    10**18, 1e18, 10**300, 2**63, [[[]]], [None], 1.0, "\ud800", "x" * 10**5,
]  # fmt: skip
MORE = {
    "num_labels": 3, "id2label": {"0": "a"}, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4,
    "max_window_layers": 1, "layer_types": ["full_attention"] * 3, "partial_rotary_factor": 1.0, "unk_token_id": 0,
}  # fmt: skip


ROTARY = {"type": 0, "truncate": 0, "mscale": 0, "attention_factor": 0}  # may stand there, too
WITHOUT_A_CLASS: dict[str, dict[str, Any]] = {  # in transformers; tests/parity/test_layouts.py
    "internlm2": {
        **SMALL, "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False, "rope_theta": 1e6,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "baichuan2-7b": {
        **SMALL, "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "model_max_length": 64,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "z_loss_weight": 0, "hidden_act": "silu",
    },
}  # fmt: skip
WITHOUT_A_CLASS["nemotron-nas"] = {
    **SMALL, "model_type": "nemotron-nas", "architectures": ["DeciLMForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": False, "intermediate_size": None,
    "num_key_value_heads": None, "block_configs": [
        {"attention": {"no_op": False, "n_heads_in_group": 2, "replace_with_linear": False, "window_length": None},
         "ffn": {"no_op": False, "ffn_mult": 2.0, "sparsify": None}},
        {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 9.0}},
        {"attention": {"no_op": False, "n_heads_in_group": 1}, "ffn": {"no_op": True, "ffn_mult": None}},
    ],
}  # fmt: skip
WITHOUT_A_CLASS["baichuan2-13b"] = {
    name: value for name, value in WITHOUT_A_CLASS["baichuan2-7b"].items() if name != "max_position_embeddings"
}


def whole(name: str) -> dict[str, Any]:
    """A config.json as transformers writes it, or as the family's own code does."""
    if name in WITHOUT_A_CLASS:
        return json.loads(json.dumps(WITHOUT_A_CLASS[name]))
    family, options = CONFIGS[name]
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **options})
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    return json.loads(config.to_json_string(use_diff=False))


def usable(values: dict[str, Any]) -> None:
    """What a config is used for before a weight is read."""
    config = config_from_hf(values, "config.json")
    abstract_params(config)
    stacks = config_from_hf(config_to_hf(config)).stacks.values()
    for stack, again in zip(config.stacks.values(), stacks, strict=True):
        assert again.attention.heads == stack.attention.heads
        if config.positions.kind != "rotary":
            continue
        for rope in config.positions.ropes:
            shape = (1, 4, rope.rotated(stack.attention.rotary_dim) // 2)
            assert rotary(rope, stack.attention.rotary_dim, config.max_positions) == shape
        assert len(stack.windows) in (0, stack.layers)


@cache
def rotary(rope: Rope, head_dim: int, max_positions: int) -> tuple[int, ...]:
    """The shape of the rotary tables, which are made but not computed."""
    places = jax.ShapeDtypeStruct((1, 4), "int32")
    return jax.eval_shape(lambda p: rotary_tables(p, rope, head_dim, max_positions), places)[0].shape


FUZZED = (
    "llama-yarn", "llama-3.1", "llama-dynamic", "mistral-window", "qwen2-windows", "gemma", "gemma2", "qwen3-windows-yarn",
    "gemma3", "olmo2-yarn", "glm", "glm4-mha-quarter", "phi3-longrope-beyond", "gpt-neox", "mixtral",
    "qwen3-moe-some-plain", "deepseek-v2",
    "mpt-clipped-6-heads", *WITHOUT_A_CLASS,
)  # fmt: skip


@pytest.mark.parametrize("name", FUZZED)
def test_each_field_of_each_family(name):
    """Every field in turn, and every one of the objects in it, takes every odd value: read, or refused in one line that
    names it."""
    values = whole(name)
    fields: list[tuple[Any, ...]] = [(key,) for key in {**values, **MORE}]
    for inside in ("rope_parameters", "rope_scaling", "attn_config"):
        if values.get(inside):
            fields += [(inside, key) for key in {**values[inside], **(ROTARY if inside != "attn_config" else {})}]
    for number, block in enumerate(values.get("block_configs", [])):
        fields += [("block_configs", number, part, key) for part in block for key in block[part]]
        fields += [("block_configs", number), *(("block_configs", number, part) for part in block)]
    refused = refused_fields(values, fields)
    every = {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "rms_norm_eps",
        "max_position_embeddings", "num_key_value_heads", "tie_word_embeddings", "rope_parameters", "model_type", "eos_token_id",
        "architectures", "initializer_range",
    }  # fmt: skip
    family = values["model_type"]
    if family in ("internlm2", "baichuan"):
        every -= {"rope_parameters"}
    if family == "baichuan":
        every -= {"num_key_value_heads"}
    if family == "nemotron-nas":  # its layers have sizes of their own
        every = every - {"intermediate_size", "num_key_value_heads", "rope_parameters"} | {"block_configs", "rope_scaling"}
    if name == "baichuan2-13b":
        every = every - {"max_position_embeddings"} | {"model_max_length"}
    if family == "mpt":
        every = {
            "d_model", "n_layers", "n_heads", "max_seq_len", "expansion_ratio", "attn_config", "no_bias", "norm_type",
            "logit_scale", "embedding_fraction", "layer_norm_epsilon", "vocab_size", "tie_word_embeddings",
        }  # fmt: skip
    if family == "gpt_neox":
        every = every - {"rms_norm_eps", "num_key_value_heads"} | {"layer_norm_eps", "use_parallel_residual"}
    assert every <= refused


def test_each_field_of_a_pruned_model():
    """Those of the whole model, the list of what is gone, and both of another kind."""
    values = pruned.to_hf(whole("qwen2-windows"), {("attention", 0), ("mlp", 2)})
    fields: list[tuple[Any, ...]] = [(key,) for key in values]
    fields += [("base_config", key) for key in (*values["base_config"], "removed_blocks")]
    fields += [("removed_blocks", 1), ("removed_blocks", 1, 0), ("removed_blocks", 1, 1)]
    assert {"model_type", "base_config", "base_model_type", "removed_blocks"} <= refused_fields(values, fields)


def refused_fields(values: dict[str, Any], fields: list[tuple[Any, ...]]) -> set[str]:
    """Fields for which an odd value was refused, every time in one line that names the field; the rest were read."""
    usable(values)
    refused = set()
    for path in fields:
        for odd in ODD:
            changed = json.loads(json.dumps(values))
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = odd
            try:
                usable(changed)
            except InputError as error:
                message = str(error)
                assert message.startswith("config.json") and len(message) < 1000 and "\n" not in message
                told = re.search(r"field '([^']*)'", message)
                if told is None:
                    assert "TB of float32 weights" in message
                else:
                    refused.add(path[0])
                    assert told[1].split(".")[0] in {*values, *MORE}, message
    return refused


ENCODERS: dict[str, set[str]] = {
    "t5": {"d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon",
           "relative_attention_num_buckets", "relative_attention_max_distance", "scale_decoder_outputs", "tie_word_embeddings"},
    "bart": {"d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_attention_heads", "activation_function",
             "max_position_embeddings", "scale_embedding", "decoder_start_token_id", "tie_word_embeddings"},
    "bert": {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
             "type_vocab_size", "max_position_embeddings", "is_decoder", "add_cross_attention"},
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_each_field_of_families_with_an_encoder(name):
    family, base, options = encoders.CONFIGS[name]
    config = transformers.AutoConfig.for_model(family, **{**base, **options})
    config.architectures = [{"t5": "T5ForConditionalGeneration", "bart": "BartModel", "bert": "BertModel"}[name]]
    values = json.loads(config.to_json_string(use_diff=False))
    assert ENCODERS[name] | {"vocab_size", "architectures", "model_type"} <= refused_fields(values, [(key,) for key in values])


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("llama-mha", {"num_hidden_layers": 10**18}, "'num_hidden_layers': is 1000000000000000000, out of the range from 1 to 1000"),
    ("llama-mha", {"num_hidden_layers": 1e18}, "'num_hidden_layers': is 1e[+]18, not a whole number"),
    ("llama-mha", {"num_hidden_layers": 1000, "hidden_size": 2**19, "intermediate_size": 2**20}, "implies [0-9]+ TB of float32 weights"),
    ("llama-mha", {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None}, "'num_attention_heads': is 5, which does not divide hidden_size, 48"),
    ("llama-mha", {"num_key_value_heads": 3}, "'num_key_value_heads': is 3, which does not divide num_attention_heads, 4"),
    ("llama-mha", {"num_key_value_heads": 0}, "'num_key_value_heads': is 0, out of the range"),
    ("llama-mha", {"head_dim": 7}, "'head_dim': is 7; a rotary embedding needs an even number"),
    ("llama-mha", {"vocab_size": 2**25}, "'vocab_size': is 33554432, out of the range"),
    ("llama-mha", {"model_type": ["llama"]}, "'model_type': is list of 1, not a string"),
    ("llama-mha", {"architectures": "LlamaForCausalLM"}, "'architectures': is 'LlamaForCausalLM', not a list"),
    ("llama-mha", {"architectures": ["LlamaModel"]}, "'architectures': 'LlamaModel' is not supported"),
    ("llama-mha", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "'rope_parameters.factor': is missing, which linear needs"),
    ("llama-mha", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "'rope_parameters.full_attention': a rotary embedding for each kind"),
    ("llama-3.1", {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}, "'rope_parameters.high_freq_factor': is 4, not above"),
    ("llama-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4, "truncate": False}}, "'rope_parameters.truncate': this form of yarn"),
    ("gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention': an encoder is not supported"),
    ("gemma2", {"layer_types": ["full_attention"]}, "'layer_types': lists 1 layers, num_hidden_layers is 3"),
    ("gemma2", {"layer_types": ["full_attention", "chunked", "x"]}, "'layer_types': attention 'chunked' is not supported"),
    ("gemma2", {"attn_logit_softcapping": 0}, "'attn_logit_softcapping': is 0, out of range"),
    ("mistral-window", {"sliding_window": -1}, "'sliding_window': is -1, out of the range"),
    ("qwen3", {"head_dim": 5}, "'head_dim': is 5; a rotary embedding needs an even number"),
    ("qwen3", {"attention_bias": "no"}, "'attention_bias': is 'no', not true or false"),
    ("qwen3", {"layer_types": ["full_attention"]}, "'layer_types': lists 1 layers, num_hidden_layers is 3"),
    ("gemma3", {"sliding_window_pattern": 0, "layer_types": None}, "'sliding_window_pattern': is 0, out of the range"),
    ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention': an encoder is not supported"),
    ("gemma3", {"rope_parameters": {"rope_theta": 1e4}}, "'rope_parameters.rope_theta': stands outside the kinds of layers"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "x"}}}, "'rope_parameters.sliding_attention': rotary scaling 'x' is not supported"),
    ("gemma3", {"rope_parameters": None, "rope_local_base_freq": 0.5}, "'rope_local_base_freq': is 0.5, out of range"),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "'rope_parameters.full_attention.factor': is missing, which linear needs"),
    ("glm", {"head_dim": 12, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "'partial_rotary_factor': is 0.25, which rotates 3 of a head's 12 numbers"),
    ("glm", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.5}}, "'rope_parameters.partial_rotary_factor': is 1.5, out of range"),
    ("gpt-neox", {"use_parallel_residual": 1}, "'use_parallel_residual': is 1, not true or false"),
    ("gpt-neox", {"layer_norm_eps": -1}, "'layer_norm_eps': is -1, out of range"),
    ("phi3-longrope-beyond", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "'rope_parameters': short_factor has 1 numbers, a head has 8 frequencies"),
    ("phi3-longrope-beyond", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "longrope", "short_factor": [0]}}, "'rope_parameters.short_factor': holds 0, not a positive number"),
    ("phi3-longrope-beyond", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2}}, "'rope_scaling': rotary scaling 'linear' is not Phi-3's"),
    ("mpt", {"attn_config": {"alibi": False}}, "'attn_config.alibi': False is not supported. Known: true"),
    ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "'attn_config.alibi_bias_max': 16 is not supported. Known: 8"),
    ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "'attn_config.attn_type': 'multiquery_attention' is not supported. Known: multihead_attention"),
    ("mpt", {"attn_config": {"qk_ln": True}}, "'attn_config.qk_ln': True is not supported. Known: false"),
    ("mpt", {"attn_config": {"prefix_lm": True}}, "'attn_config.prefix_lm': True is not supported"),
    ("mpt", {"attn_config": {"clip_qkv": -1}}, "'attn_config.clip_qkv': is -1, out of range"),
    ("mpt", {"attn_config": {"softmax_scale": 0}}, "'attn_config.softmax_scale': is 0, out of range"),
    ("mpt", {"attn_config": [8]}, "'attn_config': is list of 1, not an object"),
    ("mpt", {"no_bias": False}, "'no_bias': False is not supported. Known: true"),
    ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "'logit_scale': 'inv_sqrt_d_model' is not supported. Known: null"),
    ("mpt", {"norm_type": "rmsnorm"}, "'norm_type': 'rmsnorm' is not supported. Known: low_precision_layernorm, layernorm"),
    ("mpt", {"embedding_fraction": 0.1}, "'embedding_fraction': 0.1 is not supported. Known: 1.0"),
    ("mpt", {"expansion_ratio": 10**6}, "'expansion_ratio': is 1000000, out of the range from 1 to 87381"),
    ("mpt", {"n_heads": 5}, "'n_heads': is 5, which does not divide d_model, 48"),
    ("baichuan2-13b", {"model_max_length": 0}, "'model_max_length': is 0, out of the range"),
    ("baichuan2-7b", {"max_position_embeddings": "4k"}, "'max_position_embeddings': is '4k', not a whole number"),
    ("baichuan2-7b", {"z_loss_weight": "x"}, "'z_loss_weight': is 'x', not a number"),
    ("baichuan2-7b", {"hidden_size": 36, "num_attention_heads": 4}, "'head_dim': is 9; a rotary embedding needs an even number"),
    ("llama-mha", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor': a partial rotary embedding is not supported"),
    ("mixtral", {"num_local_experts": 0}, "'num_local_experts': is 0"),
    ("mixtral", {"num_experts_per_tok": 5}, "'num_experts_per_tok': is 5, out of the range from 1 to 4"),
    ("mixtral", {"num_local_experts": 2**20}, "'num_local_experts': is 1048576, out of the range"),
    ("qwen3-moe", {"mlp_only_layers": ["1"]}, "'mlp_only_layers': holds '1', not a layer's number"),
    ("qwen3-moe", {"decoder_sparse_step": 0}, "'decoder_sparse_step': is 0, out of the range"),
    ("deepseek-v2", {"scoring_func": "sigmoid"}, "'scoring_func': 'sigmoid' is not supported"),
    ("deepseek-v2", {"topk_method": "noaux_tc"}, "'topk_method': 'noaux_tc' is not supported"),
    ("deepseek-v2", {"norm_topk_prob": True}, "'norm_topk_prob': weights that are divided by their sum"),
    ("deepseek-v2", {"moe_layer_freq": 2}, "'moe_layer_freq': layers without experts between"),
    ("deepseek-v2", {"n_group": 3}, "'n_group': is 3, which does not divide n_routed_experts, 8"),
    ("deepseek-v2", {"topk_group": 1}, "'topk_group': is 1, groups with too few experts"),
    ("deepseek-v2", {"num_key_value_heads": 2}, "'num_key_value_heads': is not num_attention_heads, 4"),
    ("deepseek-v2", {"qk_rope_head_dim": 7}, "'qk_rope_head_dim': is 7; a rotary embedding needs an even number"),
    ("deepseek-v2", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2, "mscale": 1}}, "'rope_parameters.mscale': this form of yarn"),
    ("deepseek-v2", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "proportional"}}, "'rope_parameters': rotary scaling 'proportional' is not supported"),
    ("qwen2-windows", {"use_sliding_window": "false"}, "'use_sliding_window': is 'false', not true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), BAD)
def test_fields_that_are_refused(name, changes, said):
    with pytest.raises(InputError, match=rf"^config.json(, field |: ){said}"):
        config_from_hf(whole(name) | changes, "config.json")


@pytest.mark.parametrize(
    "raw",
    [
        '{"hidden_size": 1e400}',
        '{"hidden_size": NaN}',
        '{"a": 1, "a": 2}',
        "[" * 10**5,
        "[]",
        "",
        '{"hidden_size": 1' + "0" * 5000 + "}",
    ],
)
def test_json_that_is_refused(raw, tmp_path):
    (tmp_path / "config.json").write_text(raw)
    with pytest.raises(InputError, match=r"config\.json"):
        check_folder(tmp_path)


def test_a_real_folder_is_checked_before_anything_is_allocated(tmp_path):
    """A config.json that promises another size than the weights have."""
    write_checkpoint("llama-mha", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"hidden_size": 2**17, "intermediate_size": 2**18}))
    with pytest.raises(InputError, match=r"has shape \(96, 48\), config.json gives \(96, 131072\)"):
        check_folder(tmp_path)


def test_both_forms_of_rotary_settings():
    assert with_both_forms({"a": 1}) == {"a": 1}
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}
    assert with_both_forms(nested) == nested
    part = with_both_forms(
        {"rope_parameters": {"rope_theta": 2.0, "rope_type": "default", "partial_rotary_factor": 0.5}}
    )
    assert (part["rope_theta"], part["partial_rotary_factor"], part["rope_scaling"]) == (2.0, 0.5, None)
    sections = {"type": "mrope", "mrope_section": [1, 2]}
    both = with_both_forms({"rope_theta": 3.0, "rope_scaling": sections})
    assert both["rope_scaling"] == sections and both["rope_parameters"] == {
        "rope_theta": 3.0,
        "rope_type": "mrope",
        "mrope_section": [1, 2],
    }


def renamed(name: str, **own: str) -> tuple[SimpleNamespace, dict[str, Any]]:
    """A Llama family whose config.json has other names for some fields, and a file of it."""
    values = {own.get(k, k): v for k, v in whole("llama-mha").items()}
    family = SimpleNamespace(from_hf=llama.from_hf, to_hf=llama.to_hf, tensors=llama.tensors, IGNORED=(), NAMES=own)
    return family, {**values, "model_type": name}


def test_a_family_with_names_of_its_own_is_read_written_and_told_by_them(monkeypatch):
    own = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "depth"}
    family, values = renamed("toy", **own)
    monkeypatch.setitem(FAMILIES, "toy", family)
    config = config_from_hf(values)
    plain = config_from_hf(whole("llama-mha"))
    assert dataclasses.replace(config, model_type="llama") == plain
    written = config_to_hf(config)
    assert config_from_hf(written) == config and not own.keys() & written.keys() and set(own.values()) <= written.keys()
    for wrong, said in (
        ({"dim": "wide"}, "field 'dim': is 'wide', not a whole number"),
        ({"depth": None}, "field 'depth': is missing"),
        (
            {"n_heads": 5, "num_key_value_heads": 3},
            "field 'num_key_value_heads': is .*, which does not divide n_heads, 5",
        ),
    ):
        with pytest.raises(InputError, match=said):
            config_from_hf({**values, **wrong}, "config.json")


def test_a_family_whose_file_is_broken_leaves_the_others_alone(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def from_hf(fields:\n")
    (tmp_path / "failing.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.setattr(families, "FAMILIES", families.every_family())
    assert {"broken", "failing"} <= set(families.FAMILIES)
    config_from_hf(whole("llama-mha"))
    for name, said in (("broken", "SyntaxError: "), ("failing", "No module named 'nothing_of_this_name'")):
        with pytest.raises(InputError, match=rf"{name}\.py: cannot be imported \(.*{said}"):
            config_from_hf({"model_type": name})


def test_every_family_is_tried():
    assert {whole(name)["model_type"] for name in FUZZED} | ENCODERS.keys() == set(FAMILIES)


def test_which_baichuan_a_file_is():
    """7B or 13B by the field of its length, 1 or 2 by the vocabulary or the field that only 2 has."""
    sizes = SMALL | {"model_type": "baichuan", "max_position_embeddings": None, "model_max_length": 32}
    one = config_from_hf(sizes | {"vocab_size": 64000})
    assert (one.positions.kind, one.max_positions, one.head.normalised) == ("alibi", 32, False)
    two = config_from_hf(sizes | {"vocab_size": 125696, "max_position_embeddings": 16})
    assert (two.positions.kind, two.max_positions, two.head.normalised) == ("rotary", 16, True)
    assert config_from_hf(sizes | {"vocab_size": 125700, "z_loss_weight": 0}).head.normalised
    for config in (one, two):
        assert config_from_hf(config_to_hf(config)) == config
    assert described(two) != described(dataclasses.replace(two, head=dataclasses.replace(two.head, normalised=False)))


@pytest.mark.parametrize(("name", "known"), [("llama-yarn", "0861c65d36e4e159"), ("gemma3", "734d6ec9dcd9eaf2")])
def test_what_older_configurations_are_known_by_stays(name, known):
    """Teachers' stores carry it: fields that came later must not change it."""
    family, options = CONFIGS[name]
    config = config_from_hf({"model_type": family, **SMALL, **options})
    assert hashlib.sha256(described(config).encode()).hexdigest()[:16] == known
    other = dataclasses.replace(config, decoder=(dataclasses.replace(
        config.decoder[0], attention=dataclasses.replace(config.decoder[0].attention, rotary_pairs=True)
    ),))  # fmt: skip
    assert described(other) != described(config)


PUBLISHED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model_type": "gpt_neox", "hidden_act": "gelu_fast", "rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5},
     {"theta": 10000, "share": 0.25}),
    ({"model_type": "gpt_neox", "hidden_act": "gelu", "rotary_pct": 1.0, "rotary_emb_base": 500, "use_parallel_residual": False},
     {"theta": 500, "share": 1.0}),
    ({"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": {
        "type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
     {"kind": "longrope", "original_max_positions": 4096, "factor": 32.0}),
    ({"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
      "partial_rotary_factor": 0.75, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}},
     {"kind": "longrope", "share": 0.75, "long_factors": (2.0,) * 6}),
    ({"model_type": "phi3", "max_position_embeddings": 131072, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
     {"original_max_positions": 4096, "factor": 32.0}),
    ({"model_type": "glm", "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "head_dim": 16}, {"share": 0.5}),
    ({"model_type": "glm4", "rope_theta": 5e5, "head_dim": 16}, {"share": 0.5, "theta": 5e5}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "rope"), PUBLISHED)
def test_rotary_settings_of_published_files(values, rope):
    """In the names and forms of files before transformers 5, as transformers reads them."""
    size = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96,
            "num_hidden_layers": 2, "vocab_size": 96}  # fmt: skip
    found = config_from_hf({**size, **values})
    for name, wanted in rope.items():
        assert getattr(found.positions.ropes[0], name) == wanted, name
    assert config_from_hf(config_to_hf(found)) == found
    if values.get("rope_scaling", {}).get("type") == "su":  # which transformers 5 refuses
        return
    pads = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    theirs = transformers.AutoConfig.for_model(**{**size, **values, **pads}).rope_parameters
    assert theirs.get("partial_rotary_factor", 1.0) == found.positions.ropes[0].share
    assert theirs["rope_theta"] == found.positions.ropes[0].theta
    assert theirs["rope_type"] == found.positions.ropes[0].kind


def test_longrope_of_any_family_is_saved_whole():
    """Also where its factor is not that of the lengths."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 3.0, "original_max_position_embeddings": 16,
            "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}  # fmt: skip
    config = config_from_hf({"model_type": "llama", **SMALL, "rope_parameters": rope})
    found = config.positions.ropes[0]
    assert (found.original_max_positions, found.factor) == (16, 3.0)
    assert config_from_hf(config_to_hf(config)) == config
