"""The readers of JSON and YAML, and the typed fields: hostile input is refused in one line, in bounded time."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from fusion_jax.errors import LONGEST, InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.files import regular_file
from fusion_jax.json_files import DEEPEST, parse_json, read_json
from fusion_jax.yaml_files import parse_yaml, read_yaml

BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": [-Infinity]}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "too large"),
        ('{"a": -1e999}', "too large"),
        ('{"a": ' + "9" * 400 + "}", "400 digits"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested more than"),
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", "nested more than"),
        ("[" * 200_000, "nested more than"),
        ('{"a": "\\ud800"}', "field 'a': holds half of a surrogate pair"),
        ('{"a": [0, {"b": "x\\uDFFF"}]}', "field 'a[1].b': holds half"),
        ('{"\\ud800": 1}', "holds half"),
        ("[1]", "is not a JSON object but list of 1"),
        ("", "is empty"),
        ("{", "is not JSON"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (lambda: read_json(file), lambda: parse_json(text, file=file)):
        with pytest.raises(InputError) as caught:
            read()
        assert problem in str(caught.value) and str(file) in str(caught.value)
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_json_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"model_max_length": 1000000000000000019884624838656}')
    assert read_json(tmp_path / "a.json")["model_max_length"] == 1000000000000000019884624838656
    assert parse_json('["\\ud83d\\ude00"]', list) == ["\U0001f600"]
    assert parse_json('{"a": "\\ud800"}', lone_surrogates=True) == {"a": "\ud800"}
    deepest = '{"a": ' + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1) + "}"
    assert parse_json(deepest)["a"][0]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("{}")
    for path, problem in (
        (tmp_path / "pipe", "is no regular file"), (Path("/dev/zero"), "is no regular file"),
        (tmp_path, "is a folder"), (tmp_path / "none", "there is no such file"),
        (tmp_path / "loop", "cannot be opened (too many levels"), (tmp_path / ("x" * 5000), "cannot be opened (file name"),
        (tmp_path / "file" / "x", "cannot be opened (not a directory)"), (tmp_path / "a\0b", "NUL"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            regular_file(path)
        assert problem in str(caught.value)
    assert regular_file(tmp_path / "file") == tmp_path / "file"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "stands for more than 100000 values"),
        (MERGES, "stands for more than 100000 values"),
        ("a: &a [*a]", "an alias names a value that it stands in"),
        ("a: 1\n---\nb: 2\n", "holds several YAML documents"),
        ("a: 1\na: 2\n", "line 2: is broken YAML (the key 'a' stands twice)"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("- " * 60 + "a", "nested more than 50 deep"),
        ("a: 2024-13-99", "is broken YAML"),
        ("a: !!python/object/apply:os.system [ls]", "asks for an object of type"),
        ("a: 'b", "broken YAML"),
    ],
)
def test_yaml_that_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "recipe")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "a.yml", "recipe") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
    assert parse_yaml("", "recipe") is None
    (tmp_path / "large.yml").write_text("# " + "x" * (1 << 19) + "\n")
    with pytest.raises(InputError, match="is too large for a recipe"):
        read_yaml(tmp_path / "large.yml", "recipe")


def test_fields_are_typed_and_bounded() -> None:
    fields = Fields({"n": 4, "f": 2, "t": "x", "b": True, "o": {"n": "4"}, "none": None}, file="config.json")
    assert fields.integer("n") == 4 and fields.number("f") == 2.0 and fields.text("t") == "x" and fields.flag("b")
    assert (
        fields.integer("none", 7) == 7 and fields.object("missing", None) is None and fields.choice("t", ["x"]) == "x"
    )
    for ask, problem in (
        (lambda: fields.integer("b"), "field 'b': is True, not a whole number"),
        (lambda: fields.integer("f", high=1), "field 'f': is 2, out of the range from 0 to 1"),
        (lambda: fields.integer("t"), "field 't': is 'x', not a whole number"),
        (lambda: fields.integer("missing"), "field 'missing': is missing"),
        (lambda: fields.number("t"), "field 't': is 'x', not a number"),
        (lambda: fields.number("f", above=2), "more than 2"),
        (lambda: Fields({"n": 10**400}).number("n"), "out of range"),
        (lambda: Fields({"n": 10**18}).integer("n"), "out of the range"),
        (lambda: fields.text("n"), "field 'n': is 4, not a string"),
        (lambda: fields.choice("t", ["a", "b"]), "Known: a, b"),
        (lambda: fields.object("o").integer("n"), "config.json, field 'o.n': is '4', not a whole number"),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert problem in str(caught.value)


def test_messages_are_one_line_of_bounded_length() -> None:
    error = InputError("is " + "x" * 10**6, file="f", record="y" * 10**6, field="z" * 10**6, cure="a\nb\x1b[31m\ud800")
    assert len(str(error)) < 4 * LONGEST and str(error).isprintable()
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert len(quoted("x" * 10**6)) < 100 and len(quoted([0] * 10**6)) < 100 and len(quoted(10**10_000)) < 100
