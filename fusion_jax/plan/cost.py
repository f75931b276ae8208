"""How long a program takes by its final HLO: a walk along the schedule of every computation, loops multiplied out.

Our estimate, not the compiler's: matmuls at the fitted share of the peak or at HBM speed, whichever is slower;
elementwise work at `ELEMENTWISE` of HBM speed; Pallas kernels at `KERNEL` of the peak; collectives as ring transfers
over the links of the slice, asynchronous ones hidden behind the work between their start and their end. Copies between
HBM and the vector memory move while others leave HBM idle, no byte for free; those to and from the host's memory go one
after the other over the chip's link to its host. Where a full compile has left its own cycles in the text, these are
taken for fusions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fusion_jax.plan.hlo import COLLECTIVES, Computation, Instruction, Module, replica_groups
from fusion_jax.plan.work import attention_flops, copied, kernel_cost, matmul_flops, traffic
from fusion_jax.slices import Slice

Lane = Literal["link", "host", "copy"]
ELEMENTWISE = 0.4
KERNEL = 0.5
VMEM_SPEED = 10.0  # times HBM
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "add-dependency", "opt-barrier", "domain", "iota", "rng-get-and-update-state",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "SPMD", "PrepareAsyncCall")


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a program on each chip.

    compute: bound by arithmetic; memory: by HBM; host: waited for copies to and from the host's memory; exposed,
    overlapped: of communication, waited for or hidden. flops: of matmuls on a chip, recomputation included. unknown:
    loops whose number of rounds the program does not tell, taken as one. parts: seconds by what the model calls them.
    """

    compute: float = 0.0
    memory: float = 0.0
    host: float = 0.0
    exposed: float = 0.0
    overlapped: float = 0.0
    flops: float = 0.0
    unknown: int = 0
    parts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> float:
        return self.compute + self.memory + self.host + self.exposed

    def __add__(self, other: Times) -> Times:
        return Times(
            self.compute + other.compute, self.memory + other.memory, self.host + other.host,
            self.exposed + other.exposed, self.overlapped + other.overlapped, self.flops + other.flops,
            self.unknown + other.unknown, self.parts + other.parts,
        )  # fmt: skip

    def __mul__(self, times: int) -> Times:
        return Times(
            self.compute * times, self.memory * times, self.host * times, self.exposed * times,
            self.overlapped * times, self.flops * times, self.unknown,
            Counter({name: seconds * times for name, seconds in self.parts.items()}),
        )  # fmt: skip


def step_time(module: Module, where: Slice, coords: Sequence[Sequence[int]], kernel_share: float = 1.0) -> Times:
    """The time of a program.

    Args:
      coords: of each device, in the order of the program's partitions, its place in the slice.
      kernel_share: what attention kernels compute, over the causal half that their shapes tell of.
    """
    return _Walk(module, where, coords, kernel_share).times(module.entry)


class _Walk:
    """The computations of a module, each looked at once."""

    def __init__(self, module: Module, where: Slice, coords: Sequence[Sequence[int]], kernel_share: float) -> None:
        self.module, self.where, self.coords, self.kernel_share = module, where, coords, kernel_share
        self.known: dict[str, Times] = {}

    def times(self, name: str) -> Times:
        if name not in self.known:
            self.known[name] = _Schedule(self, self.module.computations[name]).run()
        return self.known[name]

    def collective(self, called: Computation | None) -> Instruction | None:
        """The collective that a computation holds, itself or in what it calls."""
        for i in called.instructions if called else ():
            if i.opcode.removesuffix("-start") in COLLECTIVES:
                return i
            inner = self.collective(self.module.called(i)) if i.opcode == "call" else None
            if inner is not None:
                return inner
        return None

    def transfer(self, opcode: str, instruction: Instruction) -> float:
        """Seconds of a collective on the links that its group spans."""
        groups = replica_groups(instruction.attributes, len(self.coords))
        group = max(groups, key=len)
        size, ways = sum(s.size for s in instruction.results), len(group)
        if opcode == "collective-permute":
            return size / self.where.chip.link
        if ways < 2:
            return 0.0
        crossed = size * (ways - 1) / ways
        crossed *= {"all-reduce": 2, "reduce-scatter": ways}.get(opcode, 1)
        return crossed / (self.links(group) * self.where.chip.link)

    def links(self, group: Sequence[int]) -> int:
        """Links of a chip that a group can use: one along each dimension it spans, two where that is a ring."""
        places = [self.coords[d] for d in group if d < len(self.coords)]
        count = 0
        for dimension, (size, ring) in enumerate(zip(self.where.shape, self.where.wrapped, strict=True)):
            spanned = len({place[dimension] for place in places})
            count += 0 if spanned < 2 else 2 if ring and spanned == size else 1
        return max(count, 1)


class _Schedule:
    """The instructions of one computation, one after the other; links and copies work beside them.

    now: seconds passed; idle: those of them in which the instructions left HBM to copies. free: when what has been
    started is done: on the links between chips and to the host in seconds passed, copies in seconds idle.
    """

    def __init__(self, walk: _Walk, computation: Computation) -> None:
        self.walk, self.computation = walk, computation
        self.now = self.idle = 0.0
        self.free: dict[Lane, float] = {"link": 0.0, "host": 0.0, "copy": 0.0}
        self.pending: dict[str, tuple[float, float, Lane]] = {}
        self.out = Times()

    def run(self) -> Times:
        for instruction in self.computation.instructions:
            self.visit(instruction)
        return self.out

    def visit(self, i: Instruction) -> None:
        called = self.walk.module.called(i)
        opcode = i.opcode.removesuffix("-start").removesuffix("-done")
        if i.opcode in _FREE:
            return
        if i.opcode == "while":
            trips, times = self.walk.module.trips(i), self.walk.times(i.attribute("body").lstrip("%"))
            self.add(times * (1 if trips is None else trips) + Times(unknown=trips is None))
        elif i.opcode == "conditional":
            options = [self.walk.times(branch.name) for branch in self.walk.module.branches(i)]
            self.add(max(options, key=lambda t: t.total))
        elif i.opcode == "call" and called:
            self.add(self.walk.times(called.name))
        elif i.opcode.endswith("-done") or i.opcode == "async-update" or _marks(called, "AsyncCollectiveDone"):
            self.finish(i)
        elif i.opcode.endswith("-start") or _marks(called, "AsyncCollectiveStart"):
            self.start(i, opcode, called)
        elif opcode in COLLECTIVES:
            self.wait(*self.send(opcode, i), _label(i), "link")
        else:
            self.compute(i, called)

    def add(self, times: Times) -> None:
        self.out += times
        self.now += times.total

    def send(self, opcode: str, instruction: Instruction) -> tuple[float, float]:
        """(end, seconds) of a transfer that starts now, behind those under way."""
        return self.queue("link", self.walk.transfer(opcode, instruction))

    def queue(self, lane: Lane, seconds: float) -> tuple[float, float]:
        """(end, seconds) of what takes a lane from now on, behind what takes it already."""
        self.free[lane] = max(self.free[lane], self.idle if lane == "copy" else self.now) + seconds
        return self.free[lane], seconds

    def start(self, i: Instruction, opcode: str, called: Computation | None) -> None:
        inner = self.walk.collective(called)
        if opcode in COLLECTIVES:
            self.pending[i.name] = (*self.send(opcode, i), "link")
        elif inner is not None:
            self.pending[i.name] = (*self.send(inner.opcode.removesuffix("-start"), inner), "link")
        elif opcode in ("copy", "async"):
            size, crosses = copied(self.walk.module, i)
            lane: Lane = "host" if crosses else "copy"
            chip = self.walk.where.chip
            self.pending[i.name] = (*self.queue(lane, size / (chip.host_link if crosses else chip.bandwidth)), lane)

    def finish(self, i: Instruction) -> None:
        """Wait for what the operand leads back to, through fusions that carry it along."""
        name = self.origin(i.operands[0] if i.operands else "")
        if i.opcode == "async-update" or name not in self.pending:
            return
        end, seconds, lane = self.pending.pop(name)
        self.wait(end, seconds, _label(i), lane)

    def origin(self, name: str) -> str:
        while name not in self.pending:
            one = self.computation.by_name.get(name)
            if one is None or not one.operands:
                return name
            name = one.operands[0]
        return name

    def wait(self, end: float, seconds: float, label: str, lane: Lane) -> None:
        waited = max(end - (self.idle if lane == "copy" else self.now), 0.0)
        self.now += waited
        self.idle += waited
        match lane:
            case "link":
                parts = Counter({label: waited})
                self.out += Times(exposed=waited, overlapped=max(seconds - waited, 0.0), parts=parts)
            case "host":
                self.out += Times(host=waited, parts=Counter({"copies to and from the host": waited}))
            case "copy":
                self.out += Times(memory=waited, parts=Counter({"copies": waited}))

    def compute(self, i: Instruction, called: Computation | None) -> None:
        if i.opcode == "custom-call" and any(f'"{name}' in i.attributes for name in _FREE_CALLS):
            return
        inner = self.walk.collective(called)
        if inner is not None and not (called and called.name.startswith("async_collective_fusion")):
            scatter = called is not None and "all-reduce-scatter" in called.name
            end, seconds = self.send("all-reduce", inner)
            self.wait(end - seconds / 2 * scatter, seconds, _label(i), "link")
        chip = self.walk.where.chip
        flops = matmul_flops(self.walk.module, i, self.computation)
        hbm, vmem, host = traffic(self.walk.module, i, self.computation)
        if host:
            self.wait(*self.queue("host", host / chip.host_link), _label(i), "host")
        arithmetic, moving = flops / (chip.flops * chip.efficiency), hbm / chip.bandwidth
        if not flops:
            moving = max(moving / ELEMENTWISE, vmem / (chip.bandwidth * VMEM_SPEED))
        if i.opcode == "custom-call" and "tpu_custom_call" in i.attributes:
            stated = kernel_cost(i)
            flops = attention_flops(i, self.computation) * self.walk.kernel_share if stated is None else stated[0]
            hbm = hbm if stated is None else max(hbm, int(stated[1]))
            arithmetic, moving = flops / (chip.flops * KERNEL), hbm / chip.bandwidth
        seconds = max(arithmetic, moving)
        cycles = re.search(r'"estimated_cycles":"?(\d+)', i.attributes)
        if cycles:
            seconds = int(cycles.group(1)) / chip.clock
        bound = arithmetic >= moving
        parts = Counter({_label(i): seconds})
        self.out += Times(seconds * bound, seconds * (not bound), flops=flops, parts=parts)
        self.now += seconds
        self.idle += max(seconds - hbm / chip.bandwidth, 0.0)


def _marks(called: Computation | None, target: str) -> bool:
    return called is not None and any(target in i.attributes for i in called.instructions if i.opcode == "custom-call")


def _label(i: Instruction) -> str:
    """What the model calls an instruction: the end of its path in the program, wrappers left out."""
    found = re.search(r'op_name="([^"]*)"', i.attributes)
    parts = [p for p in (found.group(1) if found else i.opcode).split("/") if p not in ("while", "body", "closed_call")]
    return "/".join(parts[-2:])
