"""What one instruction of the final HLO computes and moves: FLOPs of matmuls, bytes to and from HBM."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from fusion_jax.plan.hlo import COLLECTIVES, HOST, VMEM, Computation, Instruction, Module, Shape

_SLICES = ("dynamic-slice", "slice", "gather")
_ALIASED = "output_to_operand_aliasing={{}: (0, {})}"  # inside a fusion: its operand, laid out otherwise as it is read
_SPACES = {VMEM: 1, HOST: 2}
_THROUGH = ("bitcast", "reshape", "convert", "copy", "transpose")


class Traffic(NamedTuple):
    """Bytes that an instruction moves to and from HBM, the chip's vector memory, and its host's memory."""

    hbm: int = 0
    vmem: int = 0
    host: int = 0


def matmul_flops(module: Module, instruction: Instruction, where: Computation) -> float:
    """FLOPs of the matmuls of an instruction, those inside its fusions included; 2 a multiply and add."""
    if instruction.opcode == "fusion":
        called = module.called(instruction)
        return sum(matmul_flops(module, i, called) for i in called.instructions) if called else 0.0
    operands = [where.by_name[o].shapes[0] for o in instruction.operands if o in where.by_name]
    if instruction.opcode == "dot":
        sizes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", instruction.attributes)
        contracted = [int(d) for d in (sizes.group(1) if sizes else "").split(",") if d]
        return 2.0 * instruction.shapes[0].elements * math.prod(operands[0].dims[d] for d in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, operands[0], operands[1])
    return 0.0


def _convolution_flops(instruction: Instruction, lhs: Shape, rhs: Shape) -> float:
    """The TPU compiler writes matmuls as convolutions, batch dimensions as windows that mostly hit padding: only the
    places inside the input count."""
    names, rhs_names, out_names = re.split("_|->", instruction.attribute("dim_labels"))
    window = _window(instruction.attributes)
    out, flops = instruction.shapes[0], 2.0
    flops *= out.dims[out_names.index("b")] * out.dims[out_names.index("f")] * rhs.dims[rhs_names.index("i")]
    for label in sorted(c for c in names if c.isdigit()):
        size = rhs.dims[rhs_names.index(label)]
        step, low, lhs_dilation, rhs_dilation = (
            window[key][int(label)] if key in window else default
            for key, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        inside = (lhs.dims[names.index(label)] - 1) * lhs_dilation
        flops *= sum(
            0 <= place <= inside and place % lhs_dilation == 0
            for position, tap in itertools.product(range(out.dims[out_names.index(label)]), range(size))
            for place in (position * step + tap * rhs_dilation - low,)
        ) if max(size, out.dims[out_names.index(label)]) > 1 or low else 1  # fmt: skip
    return flops


def _window(attributes: str) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    parts = dict(part.split("=") for part in found.group(1).split()) if found else {}
    return {key: [int(x.split("_")[0]) for x in value.split("x")] for key, value in parts.items()}


def traffic(module: Module, instruction: Instruction, where: Computation) -> Traffic:
    """Bytes that an instruction moves: of an operand that is only sliced the slices, of a buffer that is updated in
    place the update, nothing of a collective that a fusion carries along."""
    called = module.called(instruction) if instruction.opcode == "fusion" else None
    moved = [0, 0, 0]
    for number, name in enumerate(instruction.operands):
        operand = where.by_name.get(name)
        if operand is None or not operand.shapes:
            continue
        shape = operand.shapes[0]
        read = _read_of(module, called, number, shape.size) if called else _read_alone(instruction, number, shape)
        moved[_SPACES.get(shape.space, 0)] += read
    updates = _updates(module, called) if called else {}
    for number, shape in enumerate(instruction.shapes):
        size = updates.get(number, shape.size)
        if instruction.opcode == "dynamic-update-slice":
            size = where.by_name[instruction.operands[1]].shapes[0].size
        moved[_SPACES.get(shape.space, 0)] += size
    return Traffic(*moved)


def copied(module: Module, start: Instruction) -> tuple[int, bool]:
    """Bytes that an asynchronous copy, slice or update moves, and whether it crosses to or from the host's memory."""
    crosses = any(shape.space == HOST for shape in start.shapes)
    called = module.called(start)
    if called is None:  # a copy: (destination, source, context)
        return start.shapes[0].size, crosses
    root = called.root
    if root.opcode == "dynamic-update-slice":
        return called.by_name[root.operands[1]].shapes[0].size, crosses
    return sum(shape.size for shape in root.shapes), crosses


def _read_alone(instruction: Instruction, number: int, shape: Shape) -> int:
    if number == 0 and instruction.opcode in _SLICES:
        return sum(s.size for s in instruction.shapes)
    if number == 0 and instruction.opcode == "dynamic-update-slice":
        return 0
    return shape.size


def _read_of(module: Module, called: Computation, number: int, whole: int) -> int:
    """Bytes of a fusion's parameter that are read."""
    parameter = next((i for i in called.instructions if i.opcode == "parameter" and i.operands == (str(number),)), None)
    return _read(module, called, parameter.name, whole) if parameter else whole


def _read(module: Module, called: Computation, name: str, whole: int) -> int:
    if name == called.root.name:
        return whole
    total = 0
    for user in called.instructions:
        if name not in user.operands:
            continue
        first = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode == "tuple" or user.opcode in COLLECTIVES:
            continue
        if first and user.opcode in _SLICES:
            total += sum(s.size for s in user.shapes)
        elif first and (user.opcode == "bitcast" or _ALIASED in user.attributes):
            total += _read(module, called, user.name, whole)
        elif user.opcode == "fusion" and (inner := module.called(user)):
            places = [n for n, operand in enumerate(user.operands) if operand == name]
            total += sum(_read_of(module, inner, place, whole) for place in places)
        elif not (first and user.opcode == "dynamic-update-slice"):
            return whole
    return min(total, whole)


def _updates(module: Module, called: Computation) -> dict[int, int]:
    """Of each result of a fusion that is a buffer updated in place, the bytes of the update; of one that it passes on
    or that a collective fills, none."""
    root = called.root
    results = [called.by_name[o] for o in root.operands] if root.opcode == "tuple" else [root]
    out = {}
    for number, result in enumerate(results):
        while result.opcode in _THROUGH and result.operands and result.operands[0] in called.by_name:
            result = called.by_name[result.operands[0]]
        if result.opcode == "dynamic-update-slice" and result.operands[1] in called.by_name:
            out[number] = called.by_name[result.operands[1]].shapes[0].size
        elif root.opcode == "tuple" and (result.opcode == "parameter" or result.opcode in COLLECTIVES):
            out[number] = 0
        elif result.opcode == "fusion" and (inner := module.called(result)) and len(result.shapes) == 1:
            out[number] = _updates(module, inner).get(0, result.shapes[0].size)
    return out


def kernel_cost(instruction: Instruction) -> tuple[float, float] | None:
    """FLOPs of a Pallas kernel and the bytes it moves as it states them itself; None where it does not."""
    stated = re.search(r'"cost_estimate":(\{[^}]*\})', instruction.attributes)
    if not stated:
        return None
    cost = json.loads(stated.group(1))
    return float(cost.get("flops", 0)), float(cost.get("bytes_accessed", 0))


def attention_flops(instruction: Instruction, where: Computation) -> float:
    """FLOPs of a Pallas kernel that states none: those of causal attention from the shapes of q and k, two matmuls
    forward; backward two that are done again and one for each gradient."""
    read = [where.by_name[o].shapes[0] for o in instruction.operands if o in where.by_name and where.by_name[o].shapes]
    arrays, results = _wide(read), _wide(instruction.shapes)
    if len(arrays) < 3:
        return 0.0
    (q, k, v), gradients = arrays[:3], [r for r in results if r.dtype == arrays[0].dtype]
    numbers = q.dims[-1] + v.dims[-1] + (sum(r.dims[-1] for r in gradients) if len(arrays) > 3 else 0)
    return float(numbers * math.prod(q.dims[:-1]) * k.dims[-2])


def _wide(shapes: Sequence[Shape]) -> list[Shape]:
    """Arrays like queries, keys and values among those of a kernel, which has tables of blocks besides."""
    return [s for s in shapes if len(s.dims) >= 3 and s.dtype in ("bf16", "f16", "f32")]
