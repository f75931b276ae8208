"""What a merge did to each tensor, as tables and a picture: coefficients, what was kept and erased, norms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_jax.figures import EQUALS, MARKS, new_figure, tidy
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.merge.executor.prepare import Prepared
from fusion_jax.merge.executor.tensors import Record
from fusion_jax.merge.recipes.resolve import idle_filters
from fusion_jax.paths import write_text
from fusion_jax.versions import commit, devices, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.md"
SHARES = {  # of a record
    "coefficients": "the method's weight of each model",
    "kept": "share that the sparsifier left",
    "selected": "share by which coefficients were computed",
    "erased": "share that lost the vote on signs",
}


def write_report(prepared: Prepared, records: Sequence[Record], folder: Path) -> None:
    """report.md and its picture."""
    recipe, names = prepared.recipe, [t.name for t in prepared.plan.tensors]
    size = sum(_numel(r) for r in records)
    models = ", ".join(f"`{m}`" for m in recipe.models)
    based = recipe.base and recipe.base not in recipe.models
    lines = [
        f"# {recipe.method} of {models}" + (f" on `{recipe.base}`" if based else ""),
        f"**{result(records, len(recipe.models))}**",
        f"Computed with {', '.join(versions())}{_of_commit()}, on {devices()}. The recipe: merge.json.",
        f"{len(records)} tensors, {size:,} numbers, computed in {recipe.math_dtype}, seed {recipe.seed}.",
        *_clashes(prepared),
        *_copies(prepared),
        *(f"**Filter `{pattern}` takes no tensor.**" for pattern in idle_filters(recipe, names)),
        "## By kind of tensor",
        markdown_table(by_kind(records)),
        _legend(records),
        *(save_figure(figure, folder / f"{name}.png") for name, figure in figures(records).items()),
        "## Every tensor",
        markdown_table([row(r, r["name"]) for r in records]),
        "Parameters, all norms and hashes of the inputs (xxh3, 128 bits): tensors.jsonl.",
    ]
    write_text(folder / REPORT, "\n\n".join(lines) + "\n")


def result(records: Sequence[Record], models: int) -> str:
    """What came out, in one sentence from the norms."""
    based = [r["norms"] for r in records if "base" in r["norms"]]
    told = f"{models} models became one of {sum(_numel(r) for r in records):,} numbers"
    if not based:
        return f"{told}."
    change, size = (_root(norms[name] for norms in based) for name in ("change", "base"))
    return f"{told}, {100 * change / max(size, 1e-30):.2f} % of the base's norm away from the base."


def _of_commit() -> str:
    found = commit()
    return f", git commit {found}" if found else ""


def _numel(record: Record) -> int:
    return math.prod(record["shape"])


def _clashes(prepared: Prepared) -> list[str]:
    return [
        f"**Ids that mean different tokens**: {c.differing} of {c.shared} in `{c.model}`, the first {c.first.id} "
        f"('{c.first.other}', '{c.first.pivot}' in the output). Set `tokenizer_source` if their rows matter."
        for c in prepared.clashes
    ]


def _copies(prepared: Prepared) -> list[str]:
    """Buffers: how many, where from, and those that hold other numbers in another model."""
    if not prepared.copies:
        return []
    models = ", ".join(f"`{model}`" for model in dict.fromkeys(one.model for one in prepared.copies))
    told = [f"**Buffers**: {len(prepared.copies)} tensors that are no weights are copied from {models}, not merged."]
    differing = [one for one in prepared.copies if one.differing]
    if differing:
        first = differing[0]
        others = ", ".join(f"`{model}`" for model in first.differing)
        told.append(f"{len(differing)} of them hold other numbers elsewhere, first `{first.name}` in {others}.")
    return [" ".join(told)]


def _legend(records: Sequence[Record]) -> str:
    parts = ["moved: norm of output minus base / norm of base", "task vectors: norm of model minus base / norm of base"]
    if not any("base" in r["norms"] for r in records):
        parts = ["norm: of the merged tensor"]
    parts += [f"{name}: {about}" for name, about in SHARES.items() if any(name in r for r in records)]
    return "; ".join(parts) + "; where there are several numbers, one a model, in the order above."


def row(record: Record, name: str) -> dict[str, Any]:
    """One line of a table."""
    out: dict[str, Any] = {"tensor": name, "shape": "×".join(map(str, record["shape"]))}
    norms = record["norms"]
    if "base" in norms:
        size = max(norms["base"], 1e-30)
        out["moved"] = f"{norms['change'] / size:.4f}"
        out["task vectors"] = _shown([x / size for x in norms["task_vectors"]])
    else:
        out |= {"norm": f"{norms['output']:.4g}", "norms of the models": _shown(norms["models"])}
    return out | {key: _shown(record[key]) for key in SHARES if key in record}


def _shown(values: float | Sequence[float]) -> str:
    return " ".join(f"{v:.4f}" for v in (values if isinstance(values, list) else [values]))


def kind(name: str) -> str:
    """A tensor's name without its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def by_kind(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records of all layers of a kind in one line: sums of squares for norms, means of shares."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{kind(record['name'])} of {len(record['models'])}", []).append(record)
    out = []
    for some in groups.values():
        first = some[0]
        norms = {name: _root(r["norms"][name] for r in some) for name in first["norms"]}
        shares = {key: _mean([r[key] for r in some]) for key in SHARES if all(key in r for r in some)}
        together = {"shape": first["shape"], "norms": norms, **shares}
        line = row(together, kind(first["name"]))
        out.append({"tensor": line.pop("tensor"), "count": len(some), **line})
    return out


def _root(values: Iterable[Any]) -> Any:
    """The norm of several tensors together; of each model where the values are lists."""
    found = list(values)
    if isinstance(found[0], list):
        return [_root(column) for column in zip(*found, strict=True)]
    return sum(x * x for x in found) ** 0.5


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [sum(column) / len(values) for column in zip(*values, strict=True)]
    return sum(values) / len(values)


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """One panel for each thing that is known of every model and tensor: tensors from left to right, a line a model."""
    full = max(len(r["models"]) for r in records)
    some = [r for r in records if len(r["models"]) == full]
    panels: dict[str, list[list[float]]] = {}
    if "base" in some[0]["norms"]:
        panels["norm of task vector / norm of base"] = [
            [x / max(r["norms"]["base"], 1e-30) for x in r["norms"]["task_vectors"]] for r in some
        ]
    for key in SHARES:
        if all(isinstance(r.get(key), list) and len(r[key]) == full for r in some):
            panels[key] = [r[key] for r in some]
    if not panels:
        return {}
    figure, every = new_figure(len(panels), 1, size=(9, 2.9 * len(panels)))
    for axes, (title, values) in zip(every, panels.items(), strict=True):
        for number, line in enumerate(zip(*values, strict=True)):
            look: dict[str, Any] = {"color": EQUALS[number % len(EQUALS)], "marker": MARKS[number % len(MARKS)]}
            axes.plot(range(len(some)), line, markersize=3, linewidth=0.8, label=some[0]["models"][number], **look)
        tidy(axes, title, legend=axes is every[0])
        axes.set_ylim(bottom=0)
    axes.set_xlabel("tensor, in the order of the table", fontsize=10.5)
    return {"tensors": figure}
