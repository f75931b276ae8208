"""The page of a plan: what fits, how long it takes, what bounds it, and whose figure each is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.models.parameters import key_heads
from fusion_jax.plan.compile import Compiled, compile_for
from fusion_jax.plan.cost import Times, step_time
from fusion_jax.plan.flops import parameter_count
from fusion_jax.plan.hlo import parse
from fusion_jax.plan.programs import Place, Situation
from fusion_jax.plan.requests import Request, tokens_of, useful_flops
from fusion_jax.plan.runs import Planned
from fusion_jax.sharding import mesh_sizes
from fusion_jax.slices import Slice, slice_of

GIB = 2**30
LEGEND = """\
HBM is the TPU compiler's own buffer assignment for this program. Times are our estimate from the program that it
scheduled: matmuls at a fitted share of the peak, other work at 40 % of HBM bandwidth, collectives as ring transfers;
asynchronous ones are overlapped as far as the schedule puts work between their start and end; copies to and from the
host's memory at the speed of PCIe. MFU counts useful FLOPs:
6 x matmul parameters x tokens + 6 x layers x heads x head_dim x T x tokens (causal half), a reference in the step a
third more, a forward pass alone a third, adapters on frozen weights two thirds; recomputation is not counted. No figure
here was measured on a chip."""


@dataclass(frozen=True)
class Result:
    """A planned program with what the compiler said. beside: bytes a chip that the run holds besides the program's."""

    planned: Planned
    compiled: Compiled
    times: Times
    beside: int

    @property
    def where(self) -> Slice:
        return slice_of(self.planned.request.slice)

    @property
    def needed(self) -> int:
        return self.compiled.memory.peak + self.beside

    @property
    def fits(self) -> bool:
        return self.needed <= self.compiled.memory.available

    @property
    def mfu(self) -> float:
        """Useful FLOPs over those of the peak in the estimated time."""
        peak = self.times.total * self.where.chip.flops * self.where.chips
        return useful_flops(self.planned.request) / peak if peak else 0.0

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the time is not to be believed."""
        least = useful_flops(self.planned.request) / (self.where.chip.flops * self.where.chips)
        found = []
        if self.times.unknown:
            found.append(f"the program does not tell the rounds of {self.times.unknown} of its loops: counted as one")
        if self.times.total < least:
            found.append(
                f"the time is below that of the useful FLOPs at the full peak, {least * 1e3:,.1f} ms: work is missing"
            )
        return tuple(found)


def plan(planned: Planned, *, full: bool = False) -> Result:
    """Compile and read a planned program.

    Raises:
      InputError: see `compile.compile_for`.
    """
    compiled = compile_for(planned.request, full=full)
    where, share = slice_of(planned.request.slice), planned.request.program.kernel_share(planned.request.config)
    times = step_time(parse(compiled.text), where, compiled.coords, share)
    return Result(planned, compiled, times, _beside(planned.request))


def plan_all(planned: Sequence[Planned], *, full: bool = False) -> Iterator[Result | InputError]:
    """`plan` of each, in order, or why it is none; as many at a time as there are processors, each of which compiles
    in a process of its own."""

    def one(program: Planned) -> Result | InputError:
        try:
            return plan(program, full=full)
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(one, planned)


def _beside(request: Request) -> int:
    """Bytes a chip of weights that the run holds besides a program's own."""
    config = request.config
    return 0 if config is None else request.program.weights_beside(parameter_count(config), _place(request))


def _place(request: Request) -> Place:
    chips = slice_of(request.slice).chips
    return Place(mesh_sizes(chips, *request.mesh), chips)


def line(result: Result) -> dict[str, Any]:
    """A row of a table over slices and settings."""
    r, m, t = result, result.compiled.memory, result.times
    row = {
        "program": r.planned.title, "slice": f"{r.where.name} ({r.where.chips})",
        "fits": "yes" if r.fits else f"NO, {(r.needed - m.available) / GIB:.1f} GiB over",
        "HBM GiB": f"{r.needed / GIB:.1f} of {m.available / GIB:.1f}",
    }  # fmt: skip
    if not m.fits:
        return row | dict.fromkeys(("ms", "compute", "memory", "exposed", "overlapped", "MFU", "tokens/s", "run"), "")
    return row | {
        "ms": f"{t.total * 1e3:,.0f}{' (doubtful)' if r.doubts else ''}",
        "compute": f"{t.compute * 1e3:,.0f}", "memory": f"{t.memory * 1e3:,.0f}",
        "exposed": f"{t.exposed * 1e3:,.0f}", "overlapped": f"{t.overlapped * 1e3:,.0f}",
        "MFU": f"{r.mfu:.2f}" if r.mfu else "", "tokens/s": f"{tokens_of(r.planned.request) / t.total:,.0f}",
        "run": _hours(r),
    }  # fmt: skip


def _hours(r: Result) -> str:
    if not r.planned.times:
        return "(--plan-rows N)"
    hours = r.planned.times * r.times.total / 3600
    return f"{r.planned.times:,} times: {hours:.2f} h, {hours * r.where.chips:,.1f} chip-h"


def page(result: Result) -> str:
    """Everything about one program as Markdown."""
    r, m, t = result, result.compiled.memory, result.times
    compiler, ours = "compiler", "estimate"
    rows = [
        ("fits", line(r)["fits"], compiler),
        ("HBM a chip", f"{r.needed / GIB:.2f} of {m.available / GIB:.2f} GiB", compiler),
        ("arguments", f"{m.arguments / GIB:.2f} GiB", compiler),
        ("temporaries", f"{m.temporaries / GIB:.2f} GiB", compiler),
        ("peak of the program", f"{m.peak / GIB:.2f} GiB", compiler),
    ]  # fmt: skip
    if r.beside:
        rows.append(("weights kept beside it", f"{r.beside / GIB:.2f} GiB", ours))
    if m.fits:
        rows += _time_rows(r, ours if not r.compiled.full else "compiler's cycles, our walk")
    table = markdown_table([{"what": a, "figure": b, "whose": c} for a, b, c in rows])
    notes = "\n".join(f"- {note}" for note in r.planned.notes)
    parts = f"## {r.planned.title} on {r.where.name} ({r.where.chips} chips)\n\n{notes}\n\n{table}\n\n"
    if m.fits:
        parts += "".join(f"Doubt: {doubt}\n\n" for doubt in r.doubts)
    if not r.fits:
        parts += f"Greatest buffers: {'; '.join(f'{size / GIB:.2f} GiB {what}' for size, what in m.largest[:6])}\n\n"
    else:
        parts += f"Most time: {', '.join(f'{name} {s * 1e3:,.0f} ms' for name, s in t.parts.most_common(6))}\n\n"
    return parts + f"Limit: {limit(r)}"


def _time_rows(r: Result, ours: str) -> list[tuple[str, str, str]]:
    t, request = r.times, r.planned.request
    rows = [
        ("time of one call", f"{t.total * 1e3:,.1f} ms", ours),
        ("of it compute / memory / communication waited for",
         f"{t.compute * 1e3:,.1f} / {t.memory * 1e3:,.1f} / {t.exposed * 1e3:,.1f} ms", ours),
        ("communication hidden behind work", f"{t.overlapped * 1e3:,.1f} ms", ours),
    ]  # fmt: skip
    if t.host:
        rows.append(("waited for the host's memory", f"{t.host * 1e3:,.1f} ms", ours))
    if request.program.needs_model:
        useful = useful_flops(request) / r.where.chips
        rows += [
            ("MFU", f"{r.mfu:.3f}", "estimate"),
            ("TFLOP a chip: useful / of all matmuls", f"{useful / 1e12:,.1f} / {t.flops / 1e12:,.1f}", "count"),
            ("tokens a second", f"{tokens_of(request) / t.total:,.0f}", "estimate"),
        ]  # fmt: skip
    if tokens := request.program.in_turn():
        rows.append(("time of one token", f"{t.total * 1e3 / tokens:,.2f} ms", "estimate"))
    return [*rows, ("whole run", _hours(r), "estimate")]


def limit(r: Result) -> str:
    """What bounds the program, and the next thing to try."""
    t, program, request, memory = r.times, r.planned.request.program, r.planned.request, r.compiled.memory
    name, seconds = max(
        ("compute", t.compute), ("HBM bandwidth", t.memory), ("the link to the host", t.host),
        ("communication", t.exposed), key=lambda x: x[1],
    )  # fmt: skip
    config, room = request.config, memory.available - r.needed
    now = Situation(
        bound=name, room=room, temporaries=memory.temporaries,
        state_fits=memory.arguments + r.beside <= memory.available, place=Place(request.mesh, r.where.chips),
        heads=0 if config is None else key_heads(config),
    )  # fmt: skip
    if not r.fits:
        return f"HBM, {-room / GIB:.2f} GiB too little. {program.smaller(now)}"
    share = f"{name}, {seconds / max(t.total, 1e-12):.0%} of the time"
    if own := program.advice(now):
        return f"{share}{own}"
    if name == "the link to the host":
        return f'{share}. Try remat "full", which keeps everything on the chip'
    if name == "communication":
        if room > memory.temporaries:
            return f"{share}. {room / GIB:.1f} GiB are free: try more rows at once, or a smaller slice"
        return f"{share}. More rows at once do not fit: try a smaller slice"
    return f"{share}. A larger slice shares the work out further"
