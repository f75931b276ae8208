"""Safetensors headers by the rules of the format: what the `safetensors` library refuses is refused, all else read alike."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fusion_jax import InputError
from fusion_jax.models.safetensors_io import INDEX, SINGLE, TensorEntry, open_folder, read_header

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def tensor(start: int, end: int, shape: Any = (1,), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def write(path: Path, header: Any, data: int | bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + (bytes(data) if isinstance(data, int) else data))
    return path


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BROKEN: dict[str, tuple[Any, int, str]] = {
    "overlap": ({"a": tensor(0, 4), "b": tensor(2, 6)}, 6, "'b': its bytes overlap"),
    "same bytes": ({"a": tensor(0, 4), "b": tensor(0, 4)}, 4, "its bytes overlap"),
    "gap": ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12, "'b': there is a gap before"),
    "gap at the start": ({"a": tensor(4, 8)}, 8, "'a': there is a gap before"),
    "bytes behind": ({"a": tensor(0, 4)}, 8, "holds 4 bytes that are no tensor's"),
    "data without tensors": ({}, 8, "holds 8 bytes"),
    "cut short": ({"a": tensor(0, 4)}, 3, "'a': the file is cut short"),
    "name twice": (b"{" + ONE + b"," + ONE.replace(b"0,4", b"4,8") + b"}", 8, "'a' stands twice"),
    "same entry twice": (b"{" + ONE + b"," + ONE + b"}", 4, "'a' stands twice"),
    "field twice": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, "'dtype' stands twice"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{},' + ONE + b"}", 4, "'__metadata__' stands twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": tensor(0, 4)}, 4, "'__metadata__': is not an object of strings"),
    "metadata of another type": ({"__metadata__": [], "a": tensor(0, 4)}, 4, "'__metadata__'"),
    "blank first": (b" {" + ONE + b"}", 4, "does not begin with"),
    "byte order mark": (b"\xef\xbb\xbf{" + ONE + b"}", 4, "does not begin with"),
    "not an object": (b"[1]", 0, "does not begin with"),
    "half of a pair": (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, "broken safetensors header"),
    "wrong size": ({"a": tensor(0, 8)}, 8, "'a': its 8 bytes do not match its shape"),
    "reversed": ({"a": tensor(4, 0)}, 4, "do not match"),
    "negative size": ({"a": tensor(0, 4, [-1])}, 4, "not a list of sizes"),
    "two negative sizes": ({"a": tensor(0, 4, [-1, -1])}, 4, "not a list of sizes"),
    "size of a fraction": ({"a": tensor(0, 4, [1.0])}, 4, "not a list of sizes"),
    "size of a truth value": ({"a": tensor(0, 4, [True])}, 4, "not a list of sizes"),
    "negative offset": ({"a": tensor(-4, 0)}, 4, "data_offsets"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, 4, "data_offsets"),
    "product beyond int64": ({"a": tensor(0, 0, [2**32, 2**32])}, 0, "too large"),
    "product that wraps to 1": ({"a": tensor(0, 4, [2**62, 4, 1])}, 4, "too large"),
    "large beside zero": ({"a": tensor(0, 0, [2**40, 2**40, 0])}, 0, "too large"),
    "beyond uint64": ({"a": tensor(0, 4, [2**65])}, 4, "too large"),
    "unknown dtype": ({"a": tensor(0, 4, dtype="f32")}, 4, "'f32' is not of the format"),
    "dtype of a list": ({"a": tensor(0, 4, dtype=["F32"])}, 4, "is not of the format"),
    "half a byte": ({"a": tensor(0, 2, [3], "F4")}, 2, "do not match"),
    "entry of null": ({"a": None}, 0, "not an object"),
    "deep": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", 0, "nested"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_headers(kind, tmp_path):
    header, data, said = BROKEN[kind]
    file = write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(InputError) as told:
        read_header(file)
    assert said in str(told.value) and str(file) in str(told.value) and len(str(told.value)) < 1000


@pytest.mark.parametrize(
    "prefix", [b"", b"\0" * 7, b"\0" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 200_000_000)]
)
def test_lengths_of_headers_are_bounded(prefix, tmp_path):
    (tmp_path / "a").write_bytes(prefix)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_header(tmp_path / "a")


def mutated(random_: random.Random) -> tuple[Any, int]:
    """A header of a few tensors, whole or damaged in one to three places, and how many bytes follow it."""
    at, header = 0, {}
    for i in range(random_.randint(0, 4)):
        dtype = random_.choice([*FLOATS, "I64", "BOOL", "U8", "F8_E4M3", "F4", "C64"])
        shape = [random_.choice([0, 1, 2, 3, 8]) for _ in range(random_.randint(0, 3))]
        bits = {"I64": 64, "BOOL": 8, "U8": 8, "F8_E4M3": 8, "F4": 4, "C64": 64}.get(dtype, 0) or 8 * FLOATS[dtype]
        size = int(np.prod(shape)) * bits // 8
        header[f"t{i}"] = tensor(at, at + size, shape, dtype)
        at += size
    if random_.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    odd = [None, -1, 0, 1, 4, 2**31, 2**63, 2**64, 2**70, 1.0, "F32", "I8", "x", [], {}, [1], [0, 4], ["a"], True]
    for _ in range(random_.choice([0, 0, 1, 1, 2, 3])):
        names = list(header)
        if not names or random_.random() < 0.1:
            at += random_.choice([-1, 1, 4])
            continue
        name = random_.choice(names)
        entry = header[name]
        if not isinstance(entry, dict) or not entry or random_.random() < 0.1:
            header[name] = random_.choice(odd)
            continue
        key = random_.choice(list(entry))
        value = entry[key]
        if isinstance(value, list) and value and random_.random() < 0.7:
            changed = list(value)
            changed[random_.randrange(len(changed))] = random_.choice(
                [*odd, changed[0] + 1 if type(changed[0]) is int else 1]
            )
            entry[key] = changed
        elif random_.random() < 0.2:
            del entry[key]
        else:
            entry[key] = random_.choice(odd)
    return header, max(at, 0)


def library(file: Path) -> dict[str, np.ndarray | None] | None:
    """What the library reads: arrays of floating numbers, None for others; None where it refuses the file."""
    try:
        with safe_open(file, "np") as opened:
            known = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
            return {n: opened.get_tensor(n) if d in ("F64", "F32", "F16") else None for n, d in known.items()}
    except (SafetensorError, ValueError, OverflowError, TypeError):
        return None


def ours(file: Path) -> dict[str, TensorEntry] | None:
    try:
        return read_header(file)
    except InputError as error:
        assert str(file) in str(error)
        return None


def test_the_library_agrees_on_damaged_headers(tmp_path):
    random_, read, refused = random.Random(7), 0, 0
    for _ in range(3000):
        header, data = mutated(random_)
        raw = json.dumps(header).encode()
        if random_.random() < 0.15:  # bytes, too
            at = random_.randrange(len(raw))
            raw = raw[:at] + bytes([random_.randrange(32, 256)]) + raw[at + 1 :]
        file = write(tmp_path / "a.safetensors", raw, random_.randbytes(data))
        theirs, found = library(file), ours(file)
        if theirs is None:
            refused += 1
            assert found is None, raw
        elif found is None:
            assert raw[:1] != b"{" or _stricter(raw), raw
        else:
            read += 1
            assert found.keys() == theirs.keys()
            for name, value in theirs.items():
                assert value is None or found[name].read().tobytes() == value.tobytes()
    assert read > 500 and refused > 500


def _stricter(raw: bytes) -> bool:
    """A header that the library reads although the format's text, or JSON's, forbids it (a key that stands twice, an
    entry that is a list), or that no array can hold (zero beside a size beyond int64)."""
    pairs: list[Any] = []
    values = json.loads(raw, object_pairs_hook=lambda found: pairs.append(found) or dict(found))
    twice = any(len(dict(found)) < len(found) for found in pairs)
    large = any(
        isinstance(found.get("shape"), list) and max(found["shape"]) >= 2**31
        for found in map(dict, pairs)
        if found.get("shape")
    )
    return twice or large or any(isinstance(value, list) for value in values.values())


def folder(path: Path, **files: dict[str, float]) -> Path:
    """A folder of safetensors files, each with tensors of one number; `single` is model.safetensors."""
    path.mkdir(exist_ok=True)
    for name, tensors in files.items():
        file = SINGLE if name == "single" else f"{name}.safetensors"
        save_file({n: np.asarray([v], np.float32) for n, v in tensors.items()}, path / file)
    return path


def index(path: Path, weight_map: Any, **more: Any) -> None:
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map, **more}))


def values(path: Path) -> dict[str, float]:
    return {name: float(entry.read()[0]) for name, entry in open_folder(path).items()}


def test_a_newer_single_file_wins_over_an_index(tmp_path):
    one = folder(tmp_path / "a", single={"a": 2.0, "b": 2.0}, x={"a": 1.0}, y={"b": 1.0})
    index(one, {"a": "x.safetensors", "b": "y.safetensors"}, metadata={"total_size": 10**15})
    assert values(one) == {"a": 2.0, "b": 2.0}
    index(one, {"a": SINGLE, "b": SINGLE})
    assert values(one) == {"a": 2.0, "b": 2.0}
    (one / SINGLE).unlink()
    folder(one, single={"a": 3.0})
    index(one, {"a": SINGLE, "b": "y.safetensors"}, metadata={"total_size": "many"})
    assert values(one) == {"a": 3.0, "b": 1.0}


def test_indexes_and_files_that_disagree(tmp_path):
    one = folder(tmp_path / "a", x={"a": 1.0, "c": 3.0}, y={"b": 2.0}, z={"d": 4.0})
    index(one, {"a": "x.safetensors", "b": "y.safetensors"})
    assert values(one) == {"a": 1.0, "b": 2.0, "c": 3.0}  # as transformers: all of the listed files, no other file
    for weight_map, said in (
        ({"a": "y.safetensors", "b": "y.safetensors"}, "field 'a': is listed in the index but not in y"),
        ({"a": "none.safetensors"}, "lists 'none.safetensors', which is not there"),
        ({"a": "../a/x.safetensors"}, "which is not a file name"),
        ({"a": ".."}, "lists '..', which"), ({"a": "sub"}, "lists 'sub', which is a folder"),
        ({"a": ""}, "is a folder"), ({"a": "x\0"}, "NUL"), ({"a": "x" * 300}, "too long"), ({"a": "loop"}, "cannot be opened"),
        ({"a": 5}, "is a broken index"), ([], "is a broken index"), (None, "is a broken index"),
    ):  # fmt: skip
        (one / "sub").mkdir(exist_ok=True)
        if not (one / "loop").is_symlink():
            (one / "loop").symlink_to("loop")
        index(one, weight_map)
        with pytest.raises(InputError, match=r"index\.json.*: ") as told:
            open_folder(one)
        assert said in str(told.value)
    folder(one, y={"a": 1.0, "b": 2.0})
    index(one, {"a": "x.safetensors", "b": "y.safetensors"})
    with pytest.raises(InputError, match=r"field 'a': stands in two files, x.safetensors and y.safetensors"):
        open_folder(one)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["model-q4.gguf"],
            r"holds a GGUF file, no Hugging Face model\. Give .*/model-q4\.gguf",
        ),
        (["model-00001-of-00002.safetensors"], "but not model.safetensors.index.json"),
        (["adapter_model.safetensors", "adapter_config.json"], r"an adapter \(LoRA\) and a part of a model"),
        (["pytorch_model.bin"], "pickled weights.*Convert the model"),
        (["consolidated.safetensors"], "Mistral's own names"),
        (["notes.txt"], "holds no model.safetensors"),
    ],
)
def test_what_a_folder_holds_instead_is_told(names, said, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=said):
        open_folder(tmp_path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / SINGLE)
    with pytest.raises(InputError, match="no regular file"):
        open_folder(tmp_path)
    (tmp_path / SINGLE).unlink()
    (tmp_path / SINGLE).symlink_to(SINGLE)
    with pytest.raises(InputError, match="cannot be opened"):
        open_folder(tmp_path)
