"""Sources of records: every kind of file that is none, damaged or of another kind is named with what to do."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

import datasets
import pytest

from fusion_jax.data.loaders import load_records, load_texts, write_array_record
from fusion_jax.errors import InputError, first_line
from fusion_jax.jsonl import write_jsonl

RECORDS = [{"prompt": f"p{i}", "response": "r" * i} for i in range(9)]
datasets.disable_progress_bars()


def folder(path: Path, found: datasets.Dataset | None = None) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    (datasets.Dataset.from_list(RECORDS) if found is None else found).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(
    "name, raw, told",
    [
        ("a.json", b'[{"a": 1}, {"a": 1, "a": 2}]', "the key 'a' stands twice"), ("a.json", b'[{"a": NaN}]', "NaN is not JSON"),
        ("a.json", b"[" * 200_000, "is nested more than 100 deep"), ("a.json", b'[{"a": 1}, 3]', "record 2: is 3, not an object"),
        ("a.json", b'{"data": [\n{"a": 1}]\n}', r"is one object \(with data\), not a list"), ("a.json", b"7", "is not a JSON list but 7"),
        ("a.json", b'{"a": 1}\n{"a": ', "record 2: is not valid JSON"), ("a.json", b"", "is empty"),
        ("a.json", b'[{"a": 1e999}]', "the number 1e999 is too large"), ("a.json", b"\xff\xfe[", "is not UTF-8"),
        ("a.jsonl.gz", b"", "is packed. Unpack it first with gunzip"), ("a.zip", b"PK", "is packed"),
        ("a.parquet", b"PAR1", r"is a \.parquet table.*from_parquet"), ("a.csv", b"a,b", "from_csv"), ("a.arrow", b"", "Give the folder"),
        ("a.array_record", b"", "is no whole array_record file"),
    ],
)  # fmt: skip
def test_files_that_hold_no_records(tmp_path, name, raw, told):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=told) as found:
        load_records(str(tmp_path / name))
    assert str(found.value).startswith(str(tmp_path / name)) and len(str(found.value)) < 1000


def test_json_lines_in_a_json_file_are_read(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff\n{"a": 1}\n\n{"a": 2}\n')
    found = load_records(str(tmp_path / "a.json"))
    assert found == [{"a": 1}, {"a": 2}] and found.numbers == [2, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt", ".md", ".array_record", ""])
def test_pipes_and_odd_paths_are_refused(tmp_path, suffix):
    read = load_texts if suffix in (".txt", ".md") else load_records
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    for name, told in [
        ("pipe", "is no regular file"), ("loop", "cannot be opened"), ("n" * 300, "cannot be opened"), ("a\0b", "is no path"),
        ("none", "there is no such file"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=told):
            read(str(tmp_path / f"{name}{suffix}"))


def test_a_source_that_names_nothing_is_told_so(tmp_path):
    for read in (load_records, load_texts):
        for source in ("", "  "):
            with pytest.raises(InputError, match=r"field 'source': is empty\. Give a file of records"):
                read(source)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    assert load_records(tmp_path / "a.jsonl") == [{"text": "a"}] and load_texts(tmp_path / "a.jsonl") == ["a"]


def test_texts_that_are_not_utf8_are_named_by_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\x0cstill two\xe2\x80\xa8and still\rthree\n\nfive \xff\n")
    with pytest.raises(InputError, match=r"a\.txt, record 4: is not UTF-8"):
        load_texts(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes((tmp_path / "a.txt").read_bytes().replace(b"\xff", b"."))
    assert load_texts(str(tmp_path / "a.txt")) == ["one", "two\x0cstill two\u2028and still", "three", "five ."]


@pytest.mark.parametrize("damage", ["gone", "empty", "half", "junk", "list"])
def test_damaged_datasets_folders(tmp_path, damage):
    names = os.listdir(folder(tmp_path / "data"))
    for name in names:
        file = folder(tmp_path / "data") / name
        raw = file.read_bytes()
        file.unlink()
        changed = {"empty": b"", "half": raw[: len(raw) // 2], "junk": b"junk", "list": b"[]"}
        if damage in changed:
            file.write_bytes(changed[damage])
        with pytest.raises(InputError, match=r"data: is a damaged data set folder \(\w+: .+\)"):
            load_records(str(tmp_path / "data"))
    assert len(names) == 3


def test_folders_of_several_splits_or_of_none(tmp_path):
    both = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict(train_prefs=both, test_prefs=both).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(
        InputError, match=r"has no split 'train'\. Give the folder of one split: it has train_prefs, test_prefs"
    ):
        load_records(str(tmp_path / "data"))
    assert load_records(str(tmp_path / "data/test_prefs")) == RECORDS
    (tmp_path / "files").mkdir()
    with pytest.raises(InputError, match="files: is no data set folder"):
        load_records(str(tmp_path / "files"))
    with pytest.raises(InputError, match="hf:: names no data set"):
        load_records("hf:")


def test_columns_become_what_json_can_hold(tmp_path):
    day = datetime.datetime(2020, 1, 2, 3)
    rows = datasets.Dataset.from_dict(
        {"a": [day], "b": [datetime.timedelta(seconds=2)], "c": [[1, 2]], "d": [{"e": None}]}
    )
    found = load_records(str(folder(tmp_path / "data", rows.with_format("numpy"))))
    assert found[0]["c"] == [1, 2] and type(found[0]["c"][0]) is int
    found = load_records(str(folder(tmp_path / "data", rows)))
    assert found == [{"a": "2020-01-02T03:00:00", "b": 2.0, "c": [1, 2], "d": {"e": None}}]
    with pytest.raises(InputError, match="data, record 1, field 'a': holds bytes"):
        load_records(str(folder(tmp_path / "data", datasets.Dataset.from_dict({"a": [b"x"]}))))
    picture = {"bytes": b"x", "path": None}
    for value, kind in [(picture, datasets.Image()), ([picture], datasets.List(datasets.Image()))]:
        pictures = datasets.Dataset.from_dict({"a": [value]}, features=datasets.Features(a=kind))
        with pytest.raises(InputError, match="data, field 'a': holds images, but only text is read"):
            load_records(str(folder(tmp_path / "data", pictures)))


@pytest.mark.parametrize(
    "raw, told",
    [(b"[1]", "is not a JSON object"), (b"\xff", "is not UTF-8"), (b"[" * 99_999, "deep"), (b'{"a":NaN}', "NaN")],
)
def test_records_of_an_array_record_file_that_are_no_objects(tmp_path, raw, told):
    from array_record.python.array_record_module import ArrayRecordWriter

    file = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(file), "group_size:1")
    writer.write(b'{"a": 1}')
    writer.write(raw)
    writer.close()
    with pytest.raises(InputError, match=rf"a\.array_record, record 2: .*{told}"):
        load_records(str(file))
    (tmp_path / "b.array_record").mkdir()
    with pytest.raises(InputError, match=r"b\.array_record: is no data set folder"):
        load_records(str(tmp_path / "b.array_record"))
    assert write_array_record(tmp_path / "c.array_record", RECORDS) == 9


def test_errors_that_say_nothing_are_quoted_by_their_kind(monkeypatch):
    assert [first_line(e) for e in (ValueError(""), OSError("\n a \nb"), KeyError())] == ["ValueError", "a", "KeyError"]

    def fails(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(InputError, match=r"hf:a/b, field 'train': cannot be loaded \(TimeoutError: TimeoutError\)"):
        load_records("hf:a/b")
