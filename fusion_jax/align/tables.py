"""Coverage of a pair of tokenizers as tables, as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_jax.align.coverage import RULE_NAMES, ClassCoverage, Coverage, Direction, Images
from fusion_jax.markdown import markdown_table


def group_rows(found: Coverage) -> list[dict[str, Any]]:
    """A line for each group of texts: its tokens, and what decided their rows."""
    return [
        {
            "texts": g.group, "pivot tokens": g.pivot_tokens, "source tokens": g.source_tokens,
            **{name: f"{g.rules[name]:.3f}" for name in RULE_NAMES}, "unmapped": f"{g.unmapped:.3f}",
            "other text": f"{g.altered:.3f}",
        }
        for g in found.groups
    ]  # fmt: skip


def class_rows(classes: Mapping[str, ClassCoverage]) -> list[dict[str, Any]]:
    """A line for each class of tokens: what reaches the pivot of it."""
    return [
        {
            "class": name, "pivot tokens": f"{c.tokens:.3f}", "get a row": f"{c.taken:.3f}",
            "source mass": f"{c.mass:.3f}", "kept": f"{c.kept:.3f}", "to other text": f"{c.altered:.3f}",
            "unmapped": f"{c.unmapped:.3f}",
        }
        for name, c in classes.items()
    ]  # fmt: skip


def worst_rows(found: Coverage) -> list[dict[str, Any]]:
    """The tokens that fall back most."""
    return [
        {
            "pivot token": _shown(w.piece), "falls back": w.fallbacks, "of": w.occurrences,
            "the source had": " ".join(map(_shown, w.example)) or "nothing", "in": w.group,
        }
        for w in found.worst
    ]  # fmt: skip


def _shown(piece: str) -> str:
    """A piece as code in a table's cell: a bar or a back-tick would end it."""
    return "`" + repr(piece)[1:-1].replace("`", "'").replace("|", "\u00a6") + "`"


def image_rows(images: Mapping[str, Images]) -> list[dict[str, Any]]:
    """What becomes of the source's pieces under each map."""
    return [
        {
            "map": kind, "pieces without image": f"{i.unmapped_types:.4f}",
            "pieces to other text": f"{i.altered_types:.4f}", "tokens without image": f"{i.unmapped:.4f}",
            "tokens to other text": f"{i.altered:.4f}",
        }
        for kind, i in images.items()
    ]  # fmt: skip


def altered_rows(images: Mapping[str, Images]) -> list[dict[str, Any]]:
    """Tokens whose image is another text."""
    return [
        {"map": kind, "source token": _shown(e.piece), "its image": _shown(e.image_piece), "occurs": e.occurrences,
         "ids": f"{e.id} to {e.image}"}
        for kind, i in images.items() for e in i.examples
    ]  # fmt: skip


def summary(direction: Direction) -> str:
    """A direction's main tables."""
    found = direction.found
    tables = map(markdown_table, (group_rows(found), class_rows(found.classes), image_rows(direction.images)))
    return "\n".join([direction.title, "\n\n".join(tables), ""])


def section(direction: Direction, picture: str) -> str:
    """A direction's part of the report."""
    _, _, found, images = direction
    parts = [
        f"## {direction.title}", markdown_table(group_rows(found)), picture,
        "By class of token: of the pivot's tokens the share that gets a row; of the source's mass on such tokens, if "
        "it is sure of each next one, the shares whose image is the same text (kept), another text, and none "
        "(unmapped):",
        markdown_table(class_rows(found.classes)),
        "What becomes of the source's pieces under each map, as shares of its vocabulary and of its tokens in these "
        "texts:", markdown_table(image_rows(images)),
    ]  # fmt: skip
    if astray := altered_rows(images):
        parts += ["Tokens whose image is another text, the most frequent ones:", markdown_table(astray)]
    return "\n\n".join([
        *parts,
        "Tokens that fall back most; what the source had is one example of what the cheapest path paired them with:",
        markdown_table(worst_rows(found)),
    ])  # fmt: skip


def coverage_sentence(direction: Direction) -> str:
    """How much of the pivot gets a row of the source, in one sentence."""
    group = direction.found.groups[-1]
    shares = group.rules
    return (
        f"{100 * group.taken:.1f} % of the tokens of {direction.pivot} get a row of {direction.source} "
        f"({100 * shares['exact']:.1f} % of the same token); {100 * shares['fallback']:.1f} % fall back to the next "
        "token."
    )


def as_json(direction: Direction) -> dict[str, Any]:
    """All figures of a direction as plain values."""
    pivot, source, found, images = direction
    return {
        "pivot": pivot,
        "source": source,
        **found._asdict(),
        "groups": [{**g._asdict(), "taken": g.taken} for g in found.groups],
        "worst": [w._asdict() for w in found.worst],
        "classes": {name: c._asdict() for name, c in found.classes.items()},
        "images": {kind: {**i._asdict(), "examples": [e._asdict() for e in i.examples]} for kind, i in images.items()},
    }
