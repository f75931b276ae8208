"""What `gpu.py` says at its end, from the rows of its parts; a `page` of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fusion_jax.markdown import markdown_table

Row = dict[str, Any]
PEAKS = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100": 312e12}
"""Dense bfloat16 FLOP/s by the vendor's datasheets, of the devices whose names begin so."""
_GIB = 2**30


def sound(row: Row) -> bool:
    """Whether a row tells of nothing that went wrong; what was left out with a reason is not wrong."""
    return "error" not in row and bool(row.get("ok", True))


def page(rows: Sequence[Row]) -> str:
    """All tables, and what failed."""
    devices = sorted({f"{row['device']} ({row['versions']})" for row in rows if "device" in row})
    sections = [f"# On {' and '.join(devices) or 'no device'}"]
    for title, about, table in (
        ("Parity with the CPU", "Differences from numbers stored on a CPU.", parity(rows)),
        ("Speed beside PyTorch", SPEED, speed(rows)),
        ("Attention", "Forward, and forward with backward, in milliseconds; medians.", attention(rows)),
        ("The default run", "`python experiments/wrpo.py`, from start to end.", default(rows)),
        ("Not measured", "", wrong(rows)),
    ):
        if table:
            sections += [f"## {title}", *([about] if about else []), markdown_table(table)]
    return "\n\n".join(sections) + "\n"


SPEED = (
    "A Llama of the 1B's shape in bfloat16 (with --small two layers; on a CPU float32). Median of a step (of decoding, "
    "of a whole call) and its range. Tokens and FLOPs are those that the mathematics needs, the same for both: a "
    "prompt that the responses of an example share counts once, though PyTorch computes it for each. MFU: of the dense "
    "bfloat16 peak. Peak: of the process's GPU memory; of a CPU, its resident memory."
)


def parity(rows: Iterable[Row]) -> list[Row]:
    return [
        {
            "model": row["job"], "what": row["what"], "difference": f"{row['difference']:.1e}",
            "tolerance": f"{row['tolerance']:.0e}", "within": "yes" if row["ok"] else "NO",
        }
        for row in rows if "tolerance" in row
    ]  # fmt: skip


def speed(rows: Iterable[Row]) -> list[Row]:
    """A line for each job and contender, one job after the other, ours first."""
    timed = [row for row in rows if "tokens" in row]
    ours = {row["job"]: row["seconds"] for row in timed if row["by"] == "fusion_jax"}
    order = list(dict.fromkeys(row["job"] for row in timed))
    return [
        {
            "job": row["job"], "by": row["by"], "seconds": f"{row['seconds']:.4g}",
            "range": f"{row['least']:.4g} to {row['most']:.4g}", "tokens/s": f"{row['tokens'] / row['seconds']:,.0f}",
            "MFU": mfu(row), "peak GiB": f"{row['peak_bytes'] / _GIB:.1f}" if row["peak_bytes"] else "",
            "times ours": f"{row['seconds'] / ours[row['job']]:.2f}" if row["job"] in ours else "",
            "first step s": f"{row['first']:.0f}",
        }
        for job in order for row in timed if row["job"] == job
    ]  # fmt: skip


def mfu(row: Row) -> str:
    """Share of the device's peak, nothing for devices that are not in the table."""
    peak = next((peak for name, peak in PEAKS.items() if row["device"].startswith(name)), 0.0)
    return f"{row['flops'] / row['seconds'] / peak:.1%}" if peak else ""


def attention(rows: Iterable[Row]) -> list[Row]:
    return [
        {
            "shape": row["job"], "kernel": row["kernel"], "forward ms": f"{row['forward'] * 1e3:.3f}",
            "with backward ms": f"{row['both'] * 1e3:.3f}", "largest difference from XLA": f"{row['apart']:.1e}",
        }
        for row in rows if "kernel" in row and "forward" in row
    ]  # fmt: skip


def default(rows: Iterable[Row]) -> list[Row]:
    found = []
    for row in rows:
        if row["part"] == "default" and "seconds" in row:
            stages = [{"stage": one["stage"], "seconds": one["seconds"]} for one in row.get("stages", ())]
            accuracy = row.get("results", {})
            for one in stages:
                measured = accuracy.get(one["stage"].removeprefix("answers/"), {})
                one["accuracy"] = f"{measured['accuracy'][0]:.3f}" if measured.get("accuracy") else ""
            found += [*stages, {"stage": "all", "seconds": row["seconds"], "accuracy": ""}]
    return found


def wrong(rows: Iterable[Row]) -> list[Row]:
    return [
        {"part": row["part"], "job": row.get("job", ""), "why": " ".join(str(why).split()).replace("|", "/")}
        for row in rows if (why := row.get("error") or row.get("skipped"))
    ]  # fmt: skip
