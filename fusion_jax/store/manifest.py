"""What was made in a run folder, and whether it is still as it was made.

A thing is a file or a folder of the run, known by its path from the run folder: `sft.jsonl`, `wrpo/model`. Its
manifest, `manifests/NAME.json`, is written twice: before the thing is made it says so, and when the thing is whole, it
holds the bytes and a hash of every file, and the digests of what the thing was made from. So a thing counts as made
when its manifest says so, without relying on a rename:

- a thing whose manifest was only begun was cut short by a kill, and is made again;
- a thing that is gone is made again, and what was made from it must have been made from the same content;
- a thing that differs from its manifest, or has none, is refused, with what is to be deleted.

Hashes are xxh3 (128 bits): they find damage and edits, and are no protection against somebody who writes manifests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xxhash

from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.json_files import read_json
from fusion_jax.paths import exists, is_remote, listed, names_below, read_range, remove, size_of, sizes_below

CONFIGS = ("config.json", "adapter_config.json")
OF_A_MODEL = (".json", ".safetensors", ".model", ".tiktoken", ".jinja", ".txt")  # files that loading reads
OF_A_DATA_SET = ("state.json", "dataset_info.json", "dataset_dict.json")
FOLDER, FORMAT = "manifests", 1
BLOCK = 1 << 18  # bytes that are read at a time: as many as stay in a processor's cache
REMOTE_BLOCK = 1 << 26  # bytes that are fetched at a time from a bucket, in several requests
END = 1 << 20  # bytes at either end of a large input file that it is known by
State = Literal["missing", "begun", "made"]


class Content(NamedTuple):
    """Of a file: its size, and xxh3_128 of its bytes in hexadecimal."""

    bytes: int
    xxh3_128: str


def content_of(file: Path) -> Content:
    """Size and hash of a file, read once in blocks."""
    total, buffer = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    size = 0
    if is_remote(file):
        for start in range(0, size := size_of(file), REMOTE_BLOCK):
            total.update(read_range(file, start, min(start + REMOTE_BLOCK, size)))
        return Content(size, total.hexdigest())
    with open(file, "rb", buffering=0) as source:
        while count := source.readinto(buffer):
            total.update(buffer[:count])
            size += count
    return Content(size, total.hexdigest())


def contents(path: Path) -> dict[str, Content]:
    """Of a file, under the name ""; of a folder, of all files below it."""
    return {name: content_of(path / name if name else path) for name in names_below(path)}


def digest(values: Mapping[str, object]) -> str:
    """A hash of names and what belongs to them, in any order."""
    return xxhash.xxh3_128_hexdigest("\n".join(f"{k}\0{values[k]}" for k in sorted(values)).encode())


def signature(path: Path) -> str | None:
    """What an input is known by: a file by its content; the folder of a model or a data set by the files that are read,
    small ones by their contents, large ones by size, first and last megabyte. None for what is neither.
    """
    if path.is_file():
        return content_of(path).xxh3_128
    if any((path / name).is_file() for name in CONFIGS):  # notes and pictures beside a model change nothing
        every = [name for name in listed(path) if name.endswith(OF_A_MODEL) and (path / name).is_file()]
    elif any((path / name).is_file() for name in OF_A_DATA_SET):
        every = names_below(path)
    else:
        return None
    return digest({name: _ends(path / name) for name in every})


def _ends(file: Path) -> str:
    size = size_of(file)
    if size <= 2 * END:
        return content_of(file).xxh3_128
    ends = read_range(file, 0, END) + read_range(file, size - END, size)
    return f"{size} {xxhash.xxh3_128_hexdigest(ends)}"


class Manifest(NamedTuple):
    """files: as `contents`; made_from: name -> digest of every thing and input; records: of a file of records."""

    files: dict[str, Content]
    made_from: dict[str, str]
    records: int | None

    @property
    def digest(self) -> str:
        """The thing's identity: what its files are called and hold."""
        return digest({name: content.xxh3_128 for name, content in self.files.items()})


class Manifests:
    """The manifests of a run folder, and what this process has found or made, in that order.

    Args:
      inputs: name -> digest of what everything in the folder depends on: settings, files that the user gave.
    """

    def __init__(self, root: Path, inputs: Mapping[str, str] | None = None) -> None:
        self.root = root
        self._inputs = dict(inputs or {})
        self._known: dict[str, str] = {}
        self._leaves: set[str] = set()

    def file(self, name: str) -> Path:
        """Where the manifest of a thing is."""
        return self.root / FOLDER / f"{name}.json"

    def state(self, name: str, made_from: Iterable[str] | None = None, *, content: bool = True) -> State:
        """Whether a thing is there as it was made.

        Args:
          made_from: what it should have been made from, see `seal`.
          content: whether the files' contents are compared, or only their sizes.

        Raises:
          InputError: it differs from its manifest, has none, or was made from something else.
        """
        manifest, begun = self._read(name)
        if not exists(self.root / name):
            return "missing"
        if manifest is None:
            if begun:
                return "begun"
            problem = f"is there without its manifest ({self.file(name)}), so that nobody knows whether it is whole"
            raise self._wrong(name, "", problem)
        self._compare(name, manifest, content)
        now = self._made_from(made_from)
        for source in sorted(now.keys() | manifest.made_from.keys()):
            if now.get(source) != manifest.made_from.get(source):
                raise self._made_of_other(name, source)
        self._known[name] = manifest.digest
        return "made"

    def begin(self, name: str) -> None:
        """Say that a thing is going to be made, and remove what is there of it."""
        file, path = self.file(name), self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"format": FORMAT, "made": False}, sync=False)
        remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    def seal(self, name: str, *, made_from: Iterable[str] | None = None, records: int | None = None) -> None:
        """Say that a thing is whole.

        Args:
          made_from: names of what it was made from, or "what=digest" for what is none of this folder's things; None:
            all that this process has found or made so far, but for what was left (`leave`).
        """
        manifest = Manifest(contents(self.root / name), self._made_from(made_from), records)
        files = {path: content._asdict() for path, content in manifest.files.items()}
        value: dict[str, Any] = {"format": FORMAT, "made": True, "files": files, "made_from": manifest.made_from}
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file(name), value if records is None else value | {"records": records})
        self._known[name] = manifest.digest

    def leave(self, name: str) -> None:
        """Say that from here on nothing else is made from a thing, such as a measurement, or from what is below it."""
        self._leaves |= {known for known in self._known if known == name or known.startswith(f"{name}/")}

    def check_all(self, *, content: bool = False) -> None:
        """Compare everything that is there with its manifest: names and sizes or, slower, contents.

        Raises:
          InputError: names the first file that differs.
        """
        for name in self.names():
            manifest, _ = self._read(name)
            if manifest is not None and exists(self.root / name):
                self._compare(name, manifest, content)

    def compare(self, name: str) -> None:
        """Compare the contents of a thing that is whole with its manifest.

        Raises:
          InputError: names the first file that differs.
        """
        manifest, _ = self._read(name)
        if manifest is not None:
            self._compare(name, manifest, content=True)

    def known(self, name: str) -> bool:
        """Whether this process has found or made a thing."""
        return name in self._known

    def whole(self, name: str) -> bool:
        """Whether a thing is there and has a manifest that says that it is whole."""
        return self._read(name)[0] is not None and exists(self.root / name)

    def names(self) -> list[str]:
        """Everything that has a manifest."""
        place = self.root / FOLDER
        every = names_below(place) if place.is_dir() else []
        found = (path.removesuffix(".json") for path in every if path.endswith(".json"))
        return sorted(name for name in found if name != "run")

    def _made_from(self, made_from: Iterable[str] | None) -> dict[str, str]:
        if made_from is None:
            return self._inputs | {name: d for name, d in self._known.items() if name not in self._leaves}
        named = {name: self._known[name] for name in made_from if "=" not in name}
        return self._inputs | named | dict(one.split("=", 1) for one in made_from if "=" in one)

    def _read(self, name: str) -> tuple[Manifest | None, bool]:
        """The manifest of a whole thing, and whether there is one at all."""
        file = self.file(name)
        if not file.exists():
            return None, False
        cure = f"Delete it, {self.root / name} and what was made from it, which are made again"
        found = read_json(file, cure=cure)
        if found.get("format") != FORMAT:
            problem = f"has format {found.get('format')}, not {FORMAT}"
            raise InputError(problem, file=file, cure="Start a new run in another folder")
        if not found.get("made"):
            return None, True
        try:
            files = {path: Content(int(c["bytes"]), str(c["xxh3_128"])) for path, c in found["files"].items()}
            made_from = {str(k): str(v) for k, v in found["made_from"].items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            raise InputError("is no manifest", file=file, cure=cure) from None
        return Manifest(files, made_from, found.get("records")), True

    def _compare(self, name: str, manifest: Manifest, content: bool) -> None:
        path = self.root / name
        if path.is_dir() == ("" in manifest.files):
            kinds = ("a folder", "the file") if path.is_dir() else ("a file", "the folder")
            raise self._wrong(name, "", f"is {kinds[0]}, not {kinds[1]} that was written")
        there = sizes_below(path)
        for file in sorted(there.keys() | manifest.files.keys()):
            place = path / file if file else path
            if file not in there:
                raise self._wrong(name, file, "is missing")
            if file not in manifest.files:
                raise self._wrong(name, file, "was not there when the folder was finished")
            size, known = there[file], manifest.files[file]
            if size != known.bytes:
                raise self._wrong(name, file, f"has {size} bytes, it was written with {known.bytes}")
            if content and content_of(place) != known:
                raise self._wrong(name, file, "was changed after it was written (its hash differs)")

    def _wrong(self, name: str, file: str, problem: str) -> InputError:
        path = self.root / name
        return InputError(problem, file=path / file if file else path, cure=self._delete(name))

    def _made_of_other(self, name: str, source: str) -> InputError:
        if source in self._inputs or not self.file(source).exists():
            return InputError(
                f"was made from other content of {source}", file=self.root / name,
                cure="Restore that as it was, or start a new run in another folder",
            )  # fmt: skip
        return InputError(f"was made from another {source}", file=self.root / name, cure=self._delete(name))

    def _delete(self, name: str) -> str:
        also = list(dict.fromkeys(_shown(other, self.root) for other in self._dependents(name)))
        more = f" and what was made from it: {', '.join(also)}" if also else ""
        return f"Delete {self.root / name}{more}; then resume, which makes them again"

    def _dependents(self, name: str) -> Iterator[str]:
        """What was made from a thing, directly or not, and is there."""
        reached = {name}
        manifests = {other: self._read(other)[0] for other in self.names() if other != name}
        while found := [o for o, m in manifests.items() if m and o not in reached and reached & m.made_from.keys()]:
            reached |= set(found)
        return (o for o in manifests if o in reached and exists(self.root / o))


def _shown(name: str, root: Path) -> str:
    """What is to be deleted of a thing that depends on another: of a training stage, its checkpoints too."""
    folder, _, last = name.rpartition("/")
    if last == "model" and (root / folder / "checkpoints").exists() and folder:
        return f"{folder}/"
    return f"{name}/" if (root / name).is_dir() else name
