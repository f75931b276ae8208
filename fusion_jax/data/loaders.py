"""Records from where they lie: JSON lines, `datasets` (hub name or folder), array_record files through TFDS."""

from __future__ import annotations

import datetime
import decimal
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import arguments
from fusion_jax.copies import Fetched
from fusion_jax.data.messages import Place, text
from fusion_jax.errors import InputError, first_line, one_line, quoted
from fusion_jax.files import regular_file, replacing
from fusion_jax.json_files import parse_json, read_json
from fusion_jax.jsonl import Record, Records, numbered, read_jsonl
from fusion_jax.lazy import Indexed
from fusion_jax.paths import as_path, check_bucket, is_remote, read_bytes, read_range

PACKED = {
    **dict.fromkeys((".gz", ".tgz"), "Unpack it first with gunzip"),
    **dict.fromkeys((".zst", ".xz", ".bz2", ".zip", ".7z", ".tar"), "Unpack it first"),
}
TABLES = {".parquet": "from_parquet", ".csv": "from_csv", ".tsv": "from_csv"}


def load_records(source: str | os.PathLike[str], *, split: str = "train") -> list[Record]:
    """Records of a source, in its order.

    Args:
      source: a .jsonl file; a .json file holding a list, or JSON lines; an .array_record file; a folder written by
        `datasets.save_to_disk`; or "hf:NAME" for a data set of the hub (also "hf:NAME:SPLIT").
      split: of a `datasets` source that names none.

    Raises:
      InputError: no source is named, nothing is there, no regular file, a file of another kind, or a broken record.
    """
    source = os.fspath(source)
    if not source.strip():
        cure = "Give a file of records, a folder written by datasets.save_to_disk, or hf:NAME"
        raise InputError("is empty", field="source", cure=cure)
    if source.startswith("hf:"):
        name, _, named_split = source[3:].partition(":")
        return _from_hub(name, named_split or split)
    path = as_path(source)
    check_bucket(path)
    if path.is_dir() if is_remote(path) else os.path.isdir(path):  # of an impossible path False; its reader says why
        return _from_datasets_folder(path, split)
    if path.suffix == ".array_record":
        return list(ArrayRecords(path))
    _check_kind(path)
    if path.suffix == ".json":
        return _from_json(path)
    return read_jsonl(path)


def load_texts(source: str | os.PathLike[str]) -> list[str]:
    """The field "text" of every record of a source or, of a .txt or .md file, every line that is not blank.

    Raises:
      InputError: nothing there, no text in it, a record without one, not UTF-8.
    """
    source = os.fspath(source)
    if source.endswith((".txt", ".md")):
        texts = [line for line in text_lines(source) if line.strip()]
    else:
        texts = [text(r, "text", Place(source, i), blank=True) for i, r in numbered(load_records(source))]
    if not texts:
        raise InputError("holds no text", file=source, cure="Give at least one")
    return texts


def load_groups(sources: Sequence[str]) -> dict[str, list[str]]:
    """The texts of several sources, grouped by the field "language" of a record, else by the source's file name.

    Raises:
      InputError: as `load_texts`; a blank text in a record, no text in any source.
    """
    groups: dict[str, list[str]] = {}
    for source in sources:
        name = Path(source).name
        if source.endswith((".txt", ".md")):
            groups.setdefault(name, []).extend(load_texts(source))
            continue
        for number, record in numbered(load_records(source)):
            place = Place(source, number)
            group = name if record.get("language") is None else text(record, "language", place)
            groups.setdefault(group, []).append(text(record, "text", place))
    if not groups:
        raise InputError("there is no text", file=sources[0], field="texts", cure="Give files that hold texts")
    return groups


def text_lines(source: str) -> list[str]:
    """The lines of a text file as they stand, without their ends; a text that ends with one has an empty last line.

    Raises:
      InputError: no such file, not UTF-8; names the line.
    """
    raw = read_bytes(regular_file(source, cure="Give a text file"))
    try:
        whole = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8", file=source, record=line, cure="Save the file as UTF-8") from None
    return whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _check_kind(path: Path) -> None:
    """Refuse files that people have data in and that are no JSON, with what to do."""
    kind = path.suffix.lower()
    if kind in PACKED:
        raise InputError("is packed", file=path, cure=PACKED[kind])
    if kind in TABLES:
        how = f"datasets.Dataset.{TABLES[kind]}(FILE).save_to_disk(FOLDER)"
        raise InputError(f"is a {kind} table", file=path, cure=f"Convert it with {how} and give the folder")
    if kind == ".arrow":
        raise InputError("is one file of a data set", file=path, cure="Give the folder that it lies in")


def _from_json(path: Path) -> list[Record]:
    beginning = read_range(regular_file(path, cure="Give a .json file"), 0, 4096)
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return _from_lines_or_object(path)
    cure = "Correct it, or use JSON lines (.jsonl)"
    value = read_json(path, list, cure=cure, lone_surrogates=True)
    for number, record in enumerate(value, 1):
        if not isinstance(record, dict):
            raise InputError(f"is {quoted(record)}, not an object", file=path, record=number, cure=cure)
    return Records(value, range(1, len(value) + 1))


def _from_lines_or_object(path: Path) -> list[Record]:
    """JSON lines in a .json file, as the hub has many, or one object, which is no list of records."""
    try:
        return read_jsonl(path)
    except InputError as lines:
        try:
            found = read_json(path, dict, lone_surrogates=True)
        except InputError:
            raise lines from None
    names = ", ".join(one_line(str(name), 30) for _, name in zip(range(12), found))
    cure = "Write the list alone, or JSON lines (.jsonl)"
    raise InputError(f"is one object (with {names}), not a list of objects", file=path, cure=cure)


def _from_hub(name: str, split: str) -> list[Record]:
    import datasets

    if not name.strip():
        raise InputError("names no data set", file="hf:", cure="Write hf:NAME or hf:NAME:SPLIT")
    try:
        return _rows(datasets.load_dataset(name, split=split), f"hf:{name}")
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the hub's failures have no common class
        problem = f"cannot be loaded ({type(error).__name__}: {first_line(error)})"
        raise InputError(problem, file=f"hf:{name}", field=split, cure="Check name, split and network") from None


def _from_datasets_folder(path: Path, split: str) -> list[Record]:
    import datasets

    try:
        copy = Fetched(path)  # as long as its rows are read
        found = datasets.load_from_disk(str(copy.path))
    except Exception as error:  # json, pyarrow, key and type errors: one for each kind of damage
        raise _broken_folder(path, error) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            cure = f"Give the folder of one split: it has {', '.join(found)}"
            raise InputError(f"has no split '{split}'", file=path, field="split", cure=cure)
        found = found[split]
    try:
        return _rows(found, str(path))
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _broken_folder(path, error) from None


def _broken_folder(path: Path, error: Exception) -> InputError:
    parts = ("state.json", "dataset_info.json", "dataset_dict.json")
    if not any((path / name).exists() for name in parts) and not any(path.glob("*.arrow")):
        cure = "Write it with datasets.save_to_disk, or give one of its files"
        return InputError("is no data set folder", file=path, cure=cure)
    problem = f"is a damaged data set folder ({type(error).__name__}: {first_line(error)})"
    return InputError(problem, file=path, cure="Copy or write it again with datasets.save_to_disk")


def _rows(found: Any, source: str) -> list[Record]:
    """The rows of a data set as a JSON file would hold them; columns that none could hold are refused by name."""
    for column, feature in (found.features or {}).items():
        kind = next((one for one in ("Image", "Audio", "Video", "Pdf") if f"{one}(" in repr(feature)), None)
        if kind is not None:
            raise InputError(f"holds {kind.lower()}s, but only text is read", file=source, field=column, cure="Drop it")
    out = []
    for number, row in enumerate(found, 1):
        out.append({name: _plain(value, name, Place(source, number)) for name, value in row.items()})
    return out


def _plain(value: Any, field: str, place: Place) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(one, f"{field}.{name}", place) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{field}[{i}]", place) for i, one in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), field, place)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return float(value)
    raise place.error(f"holds {type(value).__name__}, which is no text", field, "Drop the column, or make it text")


class ArrayRecords(Indexed[Record]):
    """Random access to the records of an array_record file (TensorFlow Datasets' format), one JSON object each."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._path = regular_file(path, cure="Give an .array_record file")
        try:
            self._copy = Fetched(self._path)
            self._source = ArrayRecordDataSource([os.fspath(self._copy.path)])
        except (RuntimeError, ValueError) as error:
            raise self._broken(error) from None

    def __len__(self) -> int:
        return len(self._source)

    def _at(self, i: int) -> Record:
        try:
            raw = self._source[i]
        except (RuntimeError, ValueError) as error:
            raise self._broken(error) from None
        return parse_json(raw, file=self._path, record=i + 1, cure="Write it again", lone_surrogates=True)

    def _broken(self, error: Exception) -> InputError:
        problem = f"is no whole array_record file ({first_line(error)})"
        return InputError(problem, file=self._path, cure="Copy or write it again")


def write_array_record(path: str | os.PathLike[str], records: Iterable[Record]) -> int:
    """Write records to an array_record file, whole or not at all; returns how many."""
    from array_record.python.array_record_module import ArrayRecordWriter

    count = 0
    arguments.records(records)
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        try:
            for record in records:
                writer.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode())
                count += 1
        finally:
            writer.close()
    return count
