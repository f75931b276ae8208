"""The header of a safetensors file and its rules, for everything that reads such files.

A header is a JSON object that begins with `{` and maps each tensor's name, once, to its dtype, shape and byte range.
The ranges cover the data exactly: no gap, no overlap, no byte behind the last one, each as long as its shape and dtype
say. `__metadata__` maps strings to strings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.json_files import CURE, parse_json

LARGEST = 100_000_000  # bytes of a header, by the format
METADATA = "__metadata__"
# The format's dtypes: bits of a number, and numpy's dtype where it has one.
BITS: dict[str, tuple[int, np.dtype]] = {
    "BOOL": (8, np.dtype(np.bool_)), "F4": (4, np.dtype(np.void)), "F6_E2M3": (6, np.dtype(np.void)),
    "F6_E3M2": (6, np.dtype(np.void)), "U8": (8, np.dtype(np.uint8)), "I8": (8, np.dtype(np.int8)),
    "F8_E5M2": (8, np.dtype(ml_dtypes.float8_e5m2)), "F8_E4M3": (8, np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E8M0": (8, np.dtype(ml_dtypes.float8_e8m0fnu)), "F8_E4M3FNUZ": (8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "F8_E5M2FNUZ": (8, np.dtype(ml_dtypes.float8_e5m2fnuz)), "I16": (16, np.dtype(np.int16)),
    "U16": (16, np.dtype(np.uint16)), "F16": (16, np.dtype(np.float16)), "BF16": (16, np.dtype(ml_dtypes.bfloat16)),
    "I32": (32, np.dtype(np.int32)), "U32": (32, np.dtype(np.uint32)), "F32": (32, np.dtype(np.float32)),
    "C64": (64, np.dtype(np.complex64)), "F64": (64, np.dtype(np.float64)), "I64": (64, np.dtype(np.int64)),
    "U64": (64, np.dtype(np.uint64)),
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor as a header gives it: the format's name of its dtype, its shape, its bytes from `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header(raw: bytes, data_bytes: int, file: str | os.PathLike[str]) -> dict[str, Stored]:
    """Every tensor of a header.

    Args:
      raw: the header's bytes. data_bytes: of the file behind it. file: for messages.

    Raises:
      InputError: a header that breaks a rule of the format; names the file and, where it is one tensor's, the tensor.
    """
    if not raw.startswith(b"{"):
        raise InputError("has a broken safetensors header (it does not begin with '{')", file=file, cure=CURE)
    try:
        values = parse_json(raw, file=file)
    except InputError as error:
        problem = f"has a broken safetensors header ({error.problem})"
        raise InputError(problem, file=file, field=error.field, cure=CURE) from None
    _check_metadata(values.pop(METADATA, None), file)
    found = {name: _stored(name, value, file) for name, value in values.items()}
    at = 0
    for name, one in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if one.end > data_bytes:
            problem = f"the file is cut short ({data_bytes} bytes of data, {one.end} needed)"
            raise InputError(problem, file=file, field=name, cure=CURE)
        if one.start != at:
            problem = "its bytes overlap another tensor's" if one.start < at else "there is a gap before its bytes"
            raise InputError(problem, file=file, field=name, cure=CURE)
        at = one.end
    if at != data_bytes:
        raise InputError(f"holds {data_bytes - at} bytes that are no tensor's", file=file, cure=CURE)
    return found


def _stored(name: str, value: Any, file: str | os.PathLike[str]) -> Stored:
    def wrong(problem: str) -> InputError:
        return InputError(problem, file=file, field=name, cure=CURE)

    if not isinstance(value, dict):
        raise wrong(f"its entry in the header is {quoted(value)}, not an object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"its dtype {quoted(dtype)} is not of the format")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise wrong("its shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise wrong("its data_offsets are not two places in the file")
    bits, sizes = BITS[dtype][0], 1
    for n in shape:
        sizes *= max(n, 1)  # of a shape with a zero the other sizes are bounded, too
        if sizes * bits >= 2**63:
            raise wrong("its shape is too large")
    total = 0 if 0 in shape else sizes * bits
    start, end = offsets
    if total % 8 or (end - start) * 8 != total:
        raise wrong(f"its {end - start} bytes do not match its shape {tuple(shape)} of {dtype}")
    return Stored(dtype, tuple(shape), start, end)


def _check_metadata(values: Any, file: str | os.PathLike[str]) -> None:
    if values is None:
        return
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise InputError("is not an object of strings", file=file, field=METADATA, cure=CURE)
