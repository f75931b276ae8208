"""Which tensor of the files is which parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.parameters import layer_specs


@dataclass(frozen=True)
class HfTensor:
    """A parameter, or one of a stack of them, in the files: the whole of a tensor there, or a part of it.

    name: of the tensor. path: of the parameter. index: which of its leading axes, such as (layer,) or (layer, expert).
    transpose: whether the last two axes lie the other way round in the file.
    shape: of the tensor, where it holds several parameters. view: what it is reshaped to before `part` cuts it;
      None: its shape. part: what of the view belongs to this parameter, in the order of its numbers. All parts that
      name one tensor cover it exactly.

    W_pack of Baichuan is [3 D, D], queries, keys and values one behind the other: shape (3 D, D), part
    (slice(0, D),), (slice(D, 2 D),), (slice(2 D, 3 D),). query_key_value of GPT-NeoX goes by heads: shape
    (3 H h, D), view (H, 3, h, D), part (slice(None), 0), (slice(None), 1), (slice(None), 2).
    """

    name: str
    path: tuple[str, ...]
    index: tuple[int, ...] = ()
    transpose: bool = False
    shape: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None
    part: tuple[slice | int, ...] = ()


NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
PARTS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def llama_like_tensors(config: ModelConfig, norms: Mapping[str, str] | None = None) -> list[HfTensor]:
    """Those of a family that names them as Llama does; `norms` maps our norms of a layer to the family's names."""
    names = {**(norms or NORMS), **PARTS}
    out = [HfTensor("model.embed_tokens.weight", ("embed", "embedding"))]
    for number, (stack, path, index) in enumerate(layers_of(config)):
        specs = layer_specs(config, stack)
        for ours, theirs in names.items():
            for leaf in [leaf for leaf in ("scale", "kernel", "bias") if leaf in specs.get(ours, {})]:
                name = f"model.layers.{number}.{theirs}.{'bias' if leaf == 'bias' else 'weight'}"
                out.append(HfTensor(name, (path, ours, leaf), (index,), leaf == "kernel"))
    out.append(HfTensor("model.norm.weight", ("final_norm", "scale")))
    if config.head.labels:
        out.append(HfTensor("score.weight", ("score", "kernel")))
    elif not config.head.tied:
        out.append(HfTensor("lm_head.weight", ("head", "kernel")))
    return out


def layers_of(config: ModelConfig) -> Iterator[tuple[Stack, str, int]]:
    """Every layer of the decoder: its stack, that one's name among the parameters, and its index there."""
    for name, stack in config.stacks.items():
        if name.startswith("layers"):
            yield from ((stack, name, index) for index in range(stack.layers))
