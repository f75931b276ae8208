"""The compiler's final, scheduled HLO text as data: computations, instructions, shapes, loops, groups of devices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

_BITS = {
    "pred": 8, "s2": 2, "s4": 4, "u2": 2, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0,
}  # fmt: skip
_SHAPE = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = ((?:\(|[a-z]+[0-9a-z]*\[).*)$")
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
VMEM, HOST = 1, 5  # memory spaces: the chip's vector memory, its host's memory
_BY_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,? ?device_ids=[^{]*)?\s*\{([^}]*)\}")
_STARTS = ("all-gather-start", "collective-permute-start")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True)
class Shape:
    """An array's dtype, sizes and layout. tile: sizes that the minor dimensions are padded to; space: 0 is HBM, others
    are `VMEM` and `HOST`."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        return int(np.prod(self.dims, dtype=np.int64))

    @property
    def size(self) -> int:
        """Bytes, padding of the tiles included."""
        sizes = [self.dims[i] for i in reversed(self.order)] if self.order else list(self.dims)
        for i, tile in enumerate(reversed(self.tile), 1):
            if i <= len(sizes):
                sizes[-i] = -(-sizes[-i] // tile) * tile
        return int(np.prod(sizes, dtype=np.int64)) * _bits(self.dtype) // 8


@dataclass(frozen=True)
class Instruction:
    """One line: `name = shapes opcode(operands), attributes`. shapes: of all arrays of the result, tuples flattened."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    def attribute(self, name: str) -> str:
        """The value of `name=...` up to the next blank or comma; "" where there is none."""
        found = re.search(rf"(?:^|[\s,]){name}=([^\s,]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def results(self) -> tuple[Shape, ...]:
        """`shapes`, of an asynchronous collective without the operands and contexts that it hands on: an all-reduce
        holds its results alone, a gather or permute (operands, results, contexts)."""
        if self.opcode not in _STARTS:
            return self.shapes
        return self.shapes[len(self.operands) : 2 * len(self.operands)]

    @property
    def called(self) -> str:
        """The computation of a fusion, call or asynchronous operation."""
        return (self.attribute("calls") or self.attribute("to_apply")).lstrip("%")


@dataclass
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_name: dict[str, Instruction] = {}

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.root), self.instructions[-1])


@dataclass(frozen=True)
class Module:
    """All computations by name, and which one is the program."""

    computations: dict[str, Computation]
    entry: str

    def called(self, instruction: Instruction) -> Computation | None:
        """The computation that a fusion, call or asynchronous start runs."""
        return self.computations.get(instruction.called)

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop runs: what the compiler knows, or the constant that its condition compares with; None
        where neither is there."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        constants = [i for i in condition.instructions if i.opcode == "constant" and i.shapes[0].dtype == "s32"]
        bounded = [i for i in condition.instructions if i.opcode == "compare" and "direction=L" in i.attributes]
        if len(constants) != 1 or not (bounded or condition.root.opcode == "fusion"):
            return None
        value = constants[0].operands[0]
        return int(value) if value.isdigit() else None

    def branches(self, conditional: Instruction) -> list[Computation]:
        """The computations of a conditional."""
        several = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
        names = several.group(1).split(",") if several else [
            conditional.attribute("true_computation"), conditional.attribute("false_computation")
        ]  # fmt: skip
        return [self.computations[name.strip().lstrip("%")] for name in names]


def _bits(dtype: str) -> int:
    return 8 if dtype.startswith("f8") else _BITS.get(dtype, 0)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Every array of a type, tuples flattened: `bf16[2,8]{1,0:T(8,128)(2,1)S(1)}`."""
    return tuple(_shape(*found.groups()) for found in _SHAPE.finditer(text))


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
    sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
    order, _, rest = (layout or "")[1:-1].partition(":")
    tile = re.match(r"T\(([0-9,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        dtype, sizes, tuple(int(d) for d in order.split(",") if d.isdigit()),
        tuple(map(int, tile.group(1).split(","))) if tile else (), int(space.group(1)) if space else 0,
    )  # fmt: skip


def parse(text: str) -> Module:
    """The text of a module.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations[header.group(2)] = Computation(header.group(2))
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (found := _LINE.match(line)):
            one = _instruction(found.group(2), _COMMENT.sub("", found.group(3)), bool(found.group(1)))
            current.instructions.append(one)
            current.by_name[one.name] = one
    if not entry:
        raise ValueError("the text has no entry computation")
    return Module(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].strip().partition("(")
    close = _closing("(" + rest, 0) - 1
    operands = tuple(o.split()[-1].lstrip("%") for o in _split(rest[:close]) if o.strip())
    return Instruction(name, opcode, parse_shapes(text[:end]), operands, rest[close + 1 :].lstrip(", "), root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _split(text: str) -> Iterator[str]:
    """At commas outside brackets."""
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
    """Which devices a collective joins, in the three forms of the text: listed, counted, or by axes of a mesh."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=(\{\{[0-9,{}]*\}\})", attributes)
    if listed:
        return [[int(d) for d in group.split(",") if d] for group in re.findall(r"\{([0-9,]+)\}", listed.group(1))]
    counted = re.search(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?", attributes)
    if counted:
        shape, sizes, order = ([int(d) for d in (part or "").split(",") if d] for part in counted.groups())
        ids = np.arange(int(np.prod(sizes))).reshape(sizes)
        return (ids.transpose(order) if order else ids).reshape(shape).tolist()
    by_axes = _BY_AXES.search(attributes)
    if by_axes:
        axes = [part.split("=") for part in by_axes.group(1).split(",")]
        names, sizes = [n.strip("' ") for n, _ in axes], [int(n) for _, n in axes]
        ids = np.arange(int(np.prod(sizes))).reshape(sizes)
        joined = [names.index(n.strip("' ")) for n in by_axes.group(2).split(",")]
        return _along(ids, joined)
    return [list(range(devices))]


def _along(ids: np.ndarray, axes: Sequence[int]) -> list[list[int]]:
    last = np.moveaxis(ids, axes, range(ids.ndim - len(axes), ids.ndim))
    return last.reshape(-1, int(np.prod([ids.shape[a] for a in axes]))).tolist()
