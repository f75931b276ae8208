"""Which tensor of the files is which parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from fusion_jax.models.config import Attention, ModelConfig, Side, Stack
from fusion_jax.models.parameters import FINAL_NORMS, ParamSpec, Specs, layer_specs, norm_specs, parameter_specs


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


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors. norms, parts: our parts of a layer -> its own; fused: its tensors that hold the
    kernels of several parts, one behind the other; experts: gate, up and down of one expert, with a place for its
    number; in layers with experts they stand in the place of the parts of these names."""

    norms: Mapping[str, str] = field(default_factory=lambda: NORMS)
    parts: Mapping[str, str] = field(default_factory=lambda: PARTS)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"


GATE_UP = {"mlp.gate_up_proj": ("gate", "up")}


def llama_like_tensors(config: ModelConfig, names: Names = Names()) -> list[HfTensor]:
    """Those of a family whose files have Llama's form, by its names."""
    inside = {part for parts in names.fused.values() for part in parts}
    single = {ours: theirs for ours, theirs in {**names.norms, **names.parts}.items() if ours not in inside}
    out = [HfTensor(f"{names.embedding}.weight", ("embed", "embedding"))]
    for number, (stack, path, index) in enumerate(layers_of(config)):
        specs, layer = layer_specs(config, stack), f"{names.layers}.{number}"
        many = names.experts if stack.mlp.experts is not None else {}
        for ours, theirs in single.items():
            if ours not in many:
                out += _whole(f"{layer}.{theirs}", specs.get(ours, {}), (path, ours), (index,))
        for expert in range(stack.mlp.experts.count if stack.mlp.experts is not None else 0):
            for ours, theirs in many.items():
                out += _whole(f"{layer}.{theirs.format(expert)}", specs.get(ours, {}), (path, ours), (index, expert))
        for theirs, parts in names.fused.items():
            if parts[0] in specs:  # not where the layer lacks them
                out += _rows(f"{layer}.{theirs}.weight", specs, path, parts, index)
    if config.final_norm is not None:
        out += _whole(names.final_norm, norm_specs(config.final_norm, config.width), ("final_norm",))
    if config.head.labels:
        out.append(HfTensor("score.weight", ("score", "kernel")))
    elif not config.head.tied:
        out.append(HfTensor(f"{names.head}.weight", ("head", "kernel")))
    return out


def _whole(name: str, specs: Specs, path: tuple[str, ...], index: tuple[int, ...] = ()) -> list[HfTensor]:
    """The tensors of one part: its kernel or scale, and its bias where it has one."""
    return [
        HfTensor(f"{name}.{'bias' if leaf == 'bias' else 'weight'}", (*path, leaf), index, leaf == "kernel")
        for leaf in ("scale", "kernel", "bias")
        if leaf in specs
    ]


def _rows(name: str, specs: Specs, path: str, parts: Sequence[str], index: int) -> list[HfTensor]:
    """A tensor that holds the kernels of several parts, one behind the other."""
    sizes = [specs[part]["kernel"].shape[1] for part in parts]
    whole, ends = (sum(sizes), specs[parts[0]]["kernel"].shape[0]), list(accumulate(sizes, initial=0))
    return [
        HfTensor(name, (path, part, "kernel"), (index,), True, whole, part=(slice(start, end),))
        for part, (start, end) in zip(parts, pairwise(ends), strict=True)
    ]


def by_heads(
    config: ModelConfig, name: str, heads: Callable[[Attention], tuple[int, Mapping[str, int | slice]]]
) -> list[HfTensor]:
    """Queries, keys and values of every layer in one tensor that goes by groups of heads.

    Args:
      name: of the tensor, with a place for the layer's number. heads: of an attention, how many heads of h numbers a
        group has, and which of them are q, k and v.
    """
    out = []
    for number, (stack, path, index) in enumerate(layers_of(config)):
        if not stack.attends:
            continue
        attention, whole = stack.attention, name.format(number)
        size, places = heads(attention)
        groups = (attention.heads + 2 * attention.kv_heads) // size
        view, rows = (groups, size, attention.head_dim), groups * size * attention.head_dim
        for ours, place in places.items():
            part, shape = (slice(None), place), (rows, config.width)
            kernel = HfTensor(
                f"{whole}.weight", (path, ours, "kernel"), (index,), True, shape, (*view, config.width), part
            )
            out.append(kernel)
            if ours in attention.biases:
                out.append(HfTensor(f"{whole}.bias", (path, ours, "bias"), (index,), False, (rows,), view, part))
    return out


def layers_of(config: ModelConfig, side: Side = "decoder") -> Iterator[tuple[Stack, str, int]]:
    """Every layer of a side: its stack, that one's name among the parameters, and its index there."""
    for name, stack in config.stacks.items():
        if name.startswith("layers" if side == "decoder" else "encoder"):
            yield from ((stack, name, index) for index in range(stack.layers))


def side_tensors(
    config: ModelConfig, side: Side, layers: str, parts: Mapping[str, str], beside: Mapping[str, str]
) -> list[HfTensor]:
    """The tensors of a side whose names are those of its parts.

    Args:
      layers: of a layer, with a place for its number. parts: a layer's part ("q", "cross.q", "mlp_norm") -> its name
        behind that. beside: the side's other parts ("embed.norm", "final_norm") -> their names; those that the model
        does not have are passed over.
    """
    out = []
    for number, (stack, path, index) in enumerate(layers_of(config, side)):
        specs = layer_specs(config, stack)
        for ours, theirs in parts.items():
            out += _part(specs, ours, f"{layers.format(number)}.{theirs}", (path,), (index,))
    specs = parameter_specs(config)
    own = {"embed": f"{side}_embed", "buckets": f"{side}_buckets", "final_norm": FINAL_NORMS[side]}
    for ours, theirs in beside.items():
        first, *rest = ours.split(".")
        out += _part(specs, ".".join([own[first], *rest]), theirs, (), ())
    return out


def head_tensors(config: ModelConfig, pooler: str, scores: str) -> list[HfTensor]:
    """The tensors of a head: of a language model's `lm_head` where it is not tied, of a pooler, of a classifier."""
    out = []
    if config.head.pooled:
        out.append(HfTensor(f"{pooler}.weight", ("pooler", "kernel"), transpose=True))
        out.append(HfTensor(f"{pooler}.bias", ("pooler", "bias")))
    if config.head.labels:
        out.append(HfTensor(f"{scores}.weight", ("score", "kernel")))
        out.append(HfTensor(f"{scores}.bias", ("score", "bias")))
    elif config.decoder and not config.head.tied:
        out.append(HfTensor("lm_head.weight", ("head", "kernel")))
    return out


def _part(specs: Specs, ours: str, theirs: str, path: tuple[str, ...], index: tuple[int, ...]) -> list[HfTensor]:
    """The tensors of a part by its dotted path; none where the model does not have it. A table is one parameter."""
    path = (*path, *ours.split("."))
    for name in ours.split("."):
        specs = specs.get(name, {})
    if isinstance(specs, ParamSpec):
        return [HfTensor(f"{theirs}.weight", path, index)]
    return _whole(theirs, specs, path, index)
