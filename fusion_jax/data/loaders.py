"""Records from where they lie: JSON lines, `datasets` (hub name or folder), array_record files through TFDS."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.data.jsonl import Record, numbered, read_jsonl
from fusion_jax.data.records import Place, text
from fusion_jax.errors import InputError, first_line
from fusion_jax.files import replacing


def load_records(source: str, *, split: str = "train") -> list[Record]:
    """Records of a source, in its order.

    Args:
      source: a .jsonl file; a .json file holding a list; an .array_record file; a folder written by
        `datasets.save_to_disk`; or "hf:NAME" for a data set of the hub (also "hf:NAME:SPLIT").
      split: of a `datasets` source that names none.

    Raises:
      InputError: nothing there, or a broken record.
    """
    if source.startswith("hf:"):
        name, _, named_split = source[3:].partition(":")
        return _from_hub(name, named_split or split)
    path = Path(source)
    if path.suffix == ".array_record":
        return list(ArrayRecords(path))
    if path.is_dir():
        return _from_datasets_folder(path, split)
    if path.suffix == ".json" and path.exists():
        return _from_json(path)
    return read_jsonl(path)


def load_texts(source: str) -> list[str]:
    """The field "text" of every record of a source or, of a .txt or .md file, every line that is not blank.

    Raises:
      InputError: nothing there, no text in it, a record without one, not UTF-8.
    """
    if not source.endswith((".txt", ".md")):
        texts = [text(r, "text", Place(source, i), blank=True) for i, r in numbered(load_records(source))]
    else:
        try:
            texts = [line for line in Path(source).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except FileNotFoundError:
            raise InputError("there is no such file", file=source, cure="Check the path") from None
        except UnicodeDecodeError:
            raise InputError("is not UTF-8", file=source, cure="Convert the file") from None
    if not texts:
        raise InputError("holds no text", file=source, cure="Give at least one")
    return texts


def _from_json(path: Path) -> list[Record]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(
            f"is not valid JSON ({error})", file=path, cure="Correct it, or use JSON lines (.jsonl)"
        ) from None
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise InputError("is not a list of objects", file=path, cure="Use JSON lines (.jsonl)")
    return value


def _from_hub(name: str, split: str) -> list[Record]:
    import datasets

    try:
        return [dict(r) for r in datasets.load_dataset(name, split=split)]
    except Exception as error:  # the hub's failures have no common class
        problem = f"cannot be loaded ({type(error).__name__}: {first_line(error)})"
        raise InputError(problem, file=f"hf:{name}", field=split, cure="Check name, split and network") from None


def _from_datasets_folder(path: Path, split: str) -> list[Record]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise InputError("is no data set folder", file=path, cure="Write it with datasets.save_to_disk") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"has no split '{split}'", file=path, field="split", cure=f"It has {', '.join(found)}")
        found = found[split]
    return [dict(r) for r in found]


class ArrayRecords(Sequence[Record]):
    """Random access to the records of an array_record file (TensorFlow Datasets' format), one JSON object each."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        if not Path(path).exists():
            raise InputError("there is no such file", file=path, cure="Check the path")
        self._path = path
        try:
            self._source = ArrayRecordDataSource([os.fspath(path)])
        except RuntimeError as error:
            raise self._broken(error) from None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        try:
            return json.loads(self._source[index % len(self)])
        except RuntimeError as error:
            raise self._broken(error) from None
        except ValueError as error:
            raise InputError(f"is not valid JSON ({error})", file=self._path, record=index + 1) from None

    def _broken(self, error: RuntimeError) -> InputError:
        return InputError(f"is no whole array_record file ({error})", file=self._path, cure="Copy or write it again")


def write_array_record(path: str | os.PathLike[str], records: Iterable[Record]) -> int:
    """Write records to an array_record file, whole or not at all; returns how many."""
    from array_record.python.array_record_module import ArrayRecordWriter

    count = 0
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        try:
            for record in records:
                writer.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode())
                count += 1
        finally:
            writer.close()
    return count
