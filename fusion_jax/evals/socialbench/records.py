"""Records of SocialBench's files, read and checked; what could never be asked or scored is refused here."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.json_files import lone_surrogate, read_json
from fusion_jax.jsonl import read_jsonl
from fusion_jax.paths import as_path, read_bytes

SAMPLE = Path(__file__).with_name("sample.json")
MEMORY, GROUP = "Individual-MEM", "Group-SAP-"
STYLE, KNOWLEDGE = "Individual-SA-RoleStyle", "Individual-SA-RoleKnowledge"
SITUATION, EMOTION, HUMOR = (
    f"Individual-EP-{name}" for name in ("SituationUnderstanding", "DialogueEmotionDetect", "HumorSarcasmDetect")
)
KINDS = (
    STYLE,
    KNOWLEDGE,
    SITUATION,
    EMOTION,
    HUMOR,
    MEMORY,
    *(GROUP + one for one in ("Positive", "Neutral", "Negative")),
)
CATEGORIES = (*KINDS, f"{MEMORY}-Short", f"{MEMORY}-Long")
LETTERS = "ABCDEFGH"
CURE = "Correct the record or remove it"


class Utterance(NamedTuple):
    """A turn of a dialogue."""

    speaker: str
    value: str


@dataclass(frozen=True)
class Item:
    """A record. index: its place in its file, from 0. choices: (letter, text) in the order shown, none for memory.
    label: right letters, or keywords. lang: "en", or "zh" for every other language. profile: (role, text) in order.

    What else a record holds (`instruction`, `meta.emotion`, `meta.reference`, ...) reaches no prompt.
    """

    file: str
    index: int
    category: str
    dialogue: tuple[Utterance, ...]
    choices: tuple[tuple[str, str], ...]
    label: tuple[str, ...]
    lang: str
    name: str = ""
    profile: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        """The category by which it is prompted and scored: all of memory's are one."""
        return kind_of(self.category)

    @property
    def answerable(self) -> bool:
        """Whether its label is among its options; one that is not can never be answered rightly, and is kept."""
        return self.kind == MEMORY or set(self.label) <= {letter for letter, _ in self.choices}

    def rotated(self, by: int) -> Item:
        """The same with each option's text moved `by` letters on, and the label with it."""
        count = len(self.choices)
        if not count or not by % count:
            return self
        letters = [letter for letter, _ in self.choices]
        texts = [self.choices[(place - by) % count][1] for place in range(count)]
        moved = {letter: letters[(place + by) % count] for place, letter in enumerate(letters)}
        label = tuple(moved.get(letter, letter) for letter in self.label)
        return dataclasses.replace(self, choices=tuple(zip(letters, texts, strict=True)), label=label)


@dataclass(frozen=True)
class BenchFile:
    """A file that was read. sha256: of its bytes."""

    name: str
    sha256: str
    items: tuple[Item, ...]


def kind_of(category: str) -> str:
    """`MEMORY` for every category of memory, else the category itself."""
    return MEMORY if category.startswith(MEMORY) else category


def load(files: Sequence[str | os.PathLike[str]], limit: int = 0) -> list[BenchFile]:
    """The benchmark's files.

    Args:
      limit: the first records of each that are taken; 0: all.

    Raises:
      InputError: a file that is no JSON list of objects and no JSON lines; a record that cannot be asked or scored:
        names file, record (from 0, as the benchmark counts) and field. Two files of one name.
    """
    found: list[BenchFile] = []
    for path in files:
        one = load_file(path, limit)
        if any(one.name == other.name for other in found):
            raise InputError(f"two files are called '{one.name}'", file=path, cure="Rename one of them")
        found.append(one)
    return found


def load_file(path: str | os.PathLike[str], limit: int = 0) -> BenchFile:
    """One file; see `load`."""
    suffix = Path(path).suffix
    if suffix == ".json":
        records = list(enumerate(read_json(path, list)))
    elif suffix == ".jsonl":
        records = list(enumerate(read_jsonl(path)))
    else:
        raise InputError(f"ends in {quoted(suffix)}", file=path, cure="Give a .json or .jsonl file")
    if not records:
        raise InputError("holds no record", file=path, cure="Give a file of the benchmark")
    kept = records[: limit or None]
    _check_categories(kept, path)
    items = tuple(_item(record, index, path) for index, record in kept)
    return BenchFile(Path(path).name, hashlib.sha256(read_bytes(as_path(path))).hexdigest(), items)


def _check_categories(records: Sequence[tuple[int, Any]], path: str | os.PathLike[str]) -> None:
    """Refuse categories that are none, all of them at once."""
    unknown = []
    for index, record in records:
        meta = record.get("meta") if isinstance(record, dict) else None
        category = meta.get("category") if isinstance(meta, dict) else None
        if isinstance(category, str) and category not in CATEGORIES:
            unknown.append((index, category))
    if unknown:
        listed = ", ".join(f"{index}: {quoted(category)}" for index, category in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"unknown categories at {listed}{more}", file=path, record=unknown[0][0], field="meta.category",
            cure=f"Known: {', '.join(CATEGORIES)}",
        )  # fmt: skip


def _item(record: Any, index: int, path: str | os.PathLike[str]) -> Item:
    if not isinstance(record, dict):
        raise InputError(f"is {quoted(record)}, not an object", file=path, record=index, cure=CURE)
    if (place := lone_surrogate(record)) is not None:
        raise InputError("holds half of a surrogate pair", file=path, record=index, field=place, cure=CURE)
    fields = Fields(record, path, index, cure=CURE)
    meta = fields.object("meta")
    category = meta.text("category")
    kind = kind_of(category)
    item = Item(
        Path(path).name, index, category, _dialogue(fields),
        _choices(fields) if kind != MEMORY else (), _label(fields),
        "en" if meta.text("lang").lower() == "en" else "zh",
    )  # fmt: skip
    if kind in (SITUATION, EMOTION, HUMOR):
        return item
    name, profile = meta.text("name"), meta.object("profile")
    for role in profile.values:
        profile.text(role)
    if not profile.values or (not kind.startswith(GROUP) and name not in profile.values):
        raise meta.wrong("profile", f"has no entry for {quoted(name)}")
    return dataclasses.replace(item, name=name, profile=tuple(profile.values.items()))


def _dialogue(fields: Fields) -> tuple[Utterance, ...]:
    found = []
    for number, one in enumerate(fields.items("dialogue")):
        if not isinstance(one, dict):
            raise fields.wrong(f"dialogue[{number}]", f"is {quoted(one)}, not an object")
        said = Fields(one, fields.file, fields.record, f"dialogue[{number}]", fields.cure)
        found.append(Utterance(said.text("from"), said.text("value")))
    if not found:
        raise fields.wrong("dialogue", "is empty")
    return tuple(found)


def _choices(fields: Fields) -> tuple[tuple[str, str], ...]:
    options = fields.object("choices")
    for letter in options.values:
        options.text(letter)
        if letter not in LETTERS or len(letter) != 1:
            raise options.wrong(letter, f"is no letter of {LETTERS}")
    if len(options.values) < 2:
        raise fields.wrong("choices", f"has {len(options.values)} options, which is no choice")
    return tuple(options.values.items())


def _label(fields: Fields) -> tuple[str, ...]:
    label = fields.items("label")
    if not label or not all(isinstance(one, str) for one in label):
        raise fields.wrong("label", "is empty" if not label else "holds what is no text")
    return tuple(label)
