"""Rotary settings of a config.json: in the form of transformers 5 (`rope_parameters`) and in those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fusion_jax.errors import quoted
from fusion_jax.fields import Fields
from fusion_jax.ops.rotary import Rope, RopeKind

POSITIONS = 2**31 - 1  # beyond any model
KINDS = get_args(RopeKind)


def rope_from_hf(
    fields: Fields,
    max_positions: int,
    *,
    share: float | None = None,
    names: Mapping[str, RopeKind] | None = None,
    theta: float = 10_000.0,
) -> Rope:
    """The one setting of all layers: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Where a file has both forms, `rope_scaling` and `rope_theta` give what they hold, as in transformers.

    Args:
      share: of a head that is rotated where the file does not say; None: the family rotates whole heads.
      names: that the family's files have for kinds. theta: the base where the file does not say.
    """
    name = "rope_scaling" if fields.object("rope_scaling", None) else "rope_parameters"
    scaling = fields.object(name, None) or Fields({}, fields.file)
    layered = next((key for key, value in scaling.values.items() if isinstance(value, dict)), None)
    if layered is not None:
        raise scaling.wrong(layered, "a rotary embedding for each kind of layer is not supported")
    return _rope(fields, scaling, ("rope_theta", theta), max_positions, share, names or {})


def layered_ropes_from_hf(fields: Fields, max_positions: int, *, full: float, sliding: float) -> tuple[Rope, Rope]:
    """The settings of layers with full and with sliding attention: objects of those names in `rope_parameters`, or
    `rope_theta` with `rope_scaling`, which scales full attention alone, and `rope_local_base_freq`.

    Args:
      full, sliding: the bases where a file gives none.
    """
    kinds = fields.object("rope_parameters", None) or Fields({}, fields.file)
    stray = [key for key, value in kinds.values.items() if not isinstance(value, dict | None)]
    if stray:
        cure = "Give full_attention and sliding_attention, an object each"
        raise kinds.wrong(stray[0], "stands outside the kinds of layers", cure)
    scaling = fields.object("rope_scaling", None)
    whole, local = (kinds.object(f"{kind}_attention", None) or Fields({}, fields.file) for kind in ("full", "sliding"))
    if scaling is not None and scaling.values:
        whole = Fields({**whole.values, **scaling.values}, fields.file, within="rope_scaling")
    return (
        _rope(fields, whole, ("rope_theta", full), max_positions),
        _rope(fields, local, ("rope_local_base_freq", sliding), max_positions),
    )


def _rope(
    fields: Fields,
    scaling: Fields,
    outer: tuple[str, float],
    max_positions: int,
    share: float | None = None,
    names: Mapping[str, RopeKind] = {},
) -> Rope:
    """One setting. scaling: its object; outer: the field beside it that gives the base where the object has none, and
    that field's default. share, names: see `rope_from_hf`."""
    kind: Any = scaling.text("rope_type", None) or scaling.text("type", "default")
    kind = names.get(kind, kind)
    if kind not in KINDS:
        problem = f"rotary scaling {quoted(kind)} is not supported"
        raise fields.wrong(scaling.within, problem, f"Known: {', '.join(KINDS)}")
    for one in (scaling, fields) if share is None else ():
        if one.number("partial_rotary_factor", 1.0) != 1.0:
            raise one.wrong("partial_rotary_factor", "a partial rotary embedding is not supported")
    rotated = scaling.number("partial_rotary_factor", None, above=0, high=1)
    rotated = fields.number("partial_rotary_factor", share, above=0, high=1) if rotated is None else rotated
    mscale = {key: scaling.number(key, 0.0, low=0, high=1e3) for key in ("mscale", "mscale_all_dim")}
    unknown = [key for key, value in mscale.items() if value and kind != "yarn"]
    unknown += [] if scaling.flag("truncate", True) else ["truncate"]
    if unknown:
        raise scaling.wrong(unknown[0], "this form of yarn is not supported")
    least = 2 if kind == "longrope" else 1  # its factor is over the logarithm of this
    original = scaling.integer("original_max_position_embeddings", None, low=least, high=POSITIONS)
    if kind == "longrope" and original is None:
        original = fields.integer("original_max_position_embeddings", max_positions, low=least, high=POSITIONS)
    scaled = kind in ("llama3", "yarn")
    low = scaling.number("low_freq_factor", 1.0, above=0, high=1e6)
    high = scaling.number("high_freq_factor", 4.0, above=0, high=1e6)
    if kind == "llama3" and high <= low:
        raise scaling.wrong("high_freq_factor", f"is {high:g}, not above low_freq_factor, {low:g}")
    theta = scaling.number("rope_theta", None, above=1, high=1e15)
    return Rope(
        theta=theta if theta is not None else fields.number(*outer, above=1, high=1e15),
        kind=kind,
        factor=_factor(scaling, kind, original, max_positions),
        original_max_positions=original or (max_positions if scaled else 0),
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=scaling.number("beta_fast", 32.0, above=0, high=1e6),
        beta_slow=scaling.number("beta_slow", 1.0, above=0, high=1e6),
        attention_factor=scaling.number("attention_factor", None, above=0, high=1e6),
        **mscale,
        share=1.0 if rotated is None else rotated,
        short_factors=_divisors(scaling, "short_factor") if kind == "longrope" else (),
        long_factors=_divisors(scaling, "long_factor") if kind == "longrope" else (),
    )


def check_rotated(fields: Fields, rope: Rope, head_dim: int) -> None:
    """Refuse a rotary setting that does not fit the heads.

    Raises:
      InputError: an odd number of rotated numbers, or of longrope another number of factors than of frequencies.
    """
    rotated = rope.rotated(head_dim)
    if rotated % 2 or not rotated:
        problem = f"is {rope.share:g}, which rotates {rotated} of a head's {head_dim} numbers"
        raise fields.wrong("partial_rotary_factor", problem, "It has to be an even number of them")
    for name, given in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
        if rope.kind == "longrope" and len(given) != rotated // 2:
            problem = f"{name} has {len(given)} numbers, a head has {rotated // 2} frequencies"
            raise fields.wrong("rope_parameters", problem, "Restore the model's own config.json")


def _divisors(scaling: Fields, name: str) -> tuple[float, ...]:
    """A list of positive numbers."""
    values = scaling.items(name, [])
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise scaling.wrong(name, f"holds {quoted(value)}, not a positive number")
    return tuple(map(float, values))


def _factor(scaling: Fields, kind: str, original: int | None, max_positions: int) -> float:
    if kind == "default":
        return 1.0
    ratio = max_positions / original if kind in ("yarn", "longrope") and original else None
    factor: float | None = scaling.number("factor", ratio, above=0, high=1e6)
    if factor is None:
        raise scaling.wrong("factor", f"is missing, which {kind} needs")
    return factor


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """An object of `rope_parameters`."""
    out: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope.kind}
    if rope.kind not in ("default", "longrope"):
        out["factor"] = rope.factor
    if rope.original_max_positions:
        out["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        out |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.share != 1.0:
        out["partial_rotary_factor"] = rope.share
    if rope.kind == "longrope":
        out |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
        out |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    if rope.kind == "yarn":
        out |= {key: value for key in ("mscale", "mscale_all_dim") if (value := getattr(rope, key))}
        out |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        out |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    return out


def rope_fields(rope: Rope, max_positions: int) -> dict[str, Any]:
    """The fields of a config.json with one setting, in both forms; what `rope_scaling` of LongRoPE cannot hold beside
    them."""
    new, beside = rope_to_hf(rope), dict[str, Any]()
    if rope.share != 1.0:
        beside["partial_rotary_factor"] = rope.share
    if rope.kind == "longrope":
        beside["original_max_position_embeddings"] = rope.original_max_positions
        if rope.factor != max_positions / rope.original_max_positions:
            new["factor"] = rope.factor
    return {"rope_parameters": new, "rope_theta": rope.theta, "rope_scaling": _scaling(new), **beside}


def layered_rope_fields(full: Rope, sliding: Rope) -> dict[str, Any]:
    """The fields of a config.json with a setting for full and one for sliding attention, in both forms."""
    new, local = rope_to_hf(full), rope_to_hf(sliding)
    return {
        "rope_parameters": {"full_attention": new, "sliding_attention": local},
        "rope_theta": full.theta, "rope_local_base_freq": sliding.theta, "rope_scaling": _scaling(new),
    }  # fmt: skip


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of transformers 4, None where nothing is scaled."""
    old = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    plain = old.keys() <= {"rope_type", "type"} and "default" in old.values()
    if old.get("rope_type") == "longrope":  # transformers 4 takes these three alone; the length stands beside them
        more: dict[str, Any] = {key: old[key] for key in ("factor", "attention_factor") if key in old}
        return {"type": "longrope", "short_factor": old["short_factor"], "long_factor": old["long_factor"], **more}
    return None if plain or not old else old


def with_both_forms(values: Mapping[str, Any], names: Mapping[str, str] = {}) -> dict[str, Any]:
    """A config.json of any family whose rotary settings stand in the forms of transformers 4 and 5, if they stand in
    one of them: a version that does not know the other one would take its defaults without a word.

    Args:
      names: usual names of fields -> what this config.json calls them.
    """
    usual = {theirs: ours for ours, theirs in names.items()}
    both = _both_forms({usual.get(name, name): value for name, value in values.items()})
    return {names.get(name, name): value for name, value in both.items()}


def _both_forms(values: Mapping[str, Any]) -> dict[str, Any]:
    scaling, rope = values.get("rope_scaling") or {}, values.get("rope_parameters")
    if not isinstance(scaling, dict) or (rope is not None and not isinstance(rope, dict)):
        return dict(values)
    if scaling or not rope:  # as transformers 5 reads a file that has both
        if "rope_theta" not in values or not scaling:  # unscaled, the old form says it all
            return dict(values)
        return {**values, "rope_parameters": _new_form(values, scaling)}
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if isinstance(full, dict) and isinstance(sliding, dict) and "rope_theta" in full and "rope_theta" in sliding:
        top = {"rope_theta": full["rope_theta"], "rope_local_base_freq": sliding["rope_theta"]}
        return {**values, **top, "rope_scaling": _scaling(full)}
    if "rope_theta" not in rope or any(isinstance(value, dict) for value in rope.values()):
        return dict(values)
    top = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    return {**values, **top, "rope_scaling": _scaling(rope)}


def _new_form(values: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a file with `rope_theta` and `rope_scaling`."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    new = {"rope_theta": values["rope_theta"], **scaling, "rope_type": kind}
    new = {key: value for key, value in new.items() if key != "type"}
    beside = ("partial_rotary_factor", *(["original_max_position_embeddings"] if kind == "longrope" else []))
    new |= {key: values[key] for key in beside if key in values}
    if "rope_local_base_freq" not in values:
        return new
    local = {"rope_theta": values["rope_local_base_freq"], "rope_type": "default"}
    return {"full_attention": new, "sliding_attention": local}
