"""Reports are Markdown: tables, and figures saved beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> str:
    """Write a PNG and return the Markdown that shows it."""
    with replacing(path, sync=False) as temporary:
        figure.savefig(temporary, format="png", dpi=120)  # whose layout is constrained: nothing lies outside
    return f"![{path.stem}]({path.name})"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    if not rows:
        return "(nothing)"
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(_cell(r.get(n, "")) for n in names) + " |" for r in rows])


def _cell(value: Any) -> str:
    """What would end a cell or its line, escaped."""
    return str(value).replace("\r", "\\r").replace("\n", "\\n").replace("|", "\\|")
