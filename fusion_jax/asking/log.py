"""The reply log: what was answered is kept, a line each, and never asked again.

A reply is known by the hash of the question's messages, the answerer's identity, how it was decoded, and its sample
number. The log is a folder with a file of JSON lines for each process that asks; all read all files. A line is on the
disk when `add` returns, so that a kill loses nothing that was told; a last line that a kill cut short is dropped. On a
bucket, whose objects cannot be appended to, a kill loses the last seconds (see `store.appending`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fusion_jax.asking.contract import Candidate, Decoding, Failure, Outcome, Question, Reply
from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.files import writing
from fusion_jax.json_files import parse_json
from fusion_jax.paths import as_path, is_remote, listed, read_range, size_of
from fusion_jax.store.appending import Appending
from fusion_jax.store.lock import Held, acquire

SUFFIX, LONGEST_LINE = ".jsonl", 1 << 26
CURE = "Remove the line, and the question is asked again"


@dataclass(frozen=True)
class Entry:
    """A line of the log. again: of a failure, how often what failed was asked again before."""

    key: str
    identity: str
    outcome: Outcome
    again: int = 0


@dataclass
class ReplyLog:
    """A folder of replies. number: of this process's own file; None: nothing is written.

    Use it in a `with` statement, or call `close`.
    """

    folder: Path
    number: int | None = 0
    _found: dict[str, Entry] = field(default_factory=dict, repr=False)
    _read: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)  # file -> bytes and lines read
    _lock: Held | None = field(default=None, repr=False)
    _file: int | None = field(default=None, repr=False)
    _appending: Appending = field(default_factory=Appending, repr=False)

    @classmethod
    def of(cls, folder: str | os.PathLike[str], number: int | None = 0) -> ReplyLog:
        """The log of a folder, which is made when something is written."""
        return cls(as_path(folder), number)

    def __enter__(self) -> ReplyLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def own(self) -> Path:
        """The file of this process."""
        return self.folder / f"{self.number}{SUFFIX}"

    def entries(self) -> dict[str, Entry]:
        """Everything that is known so far, by its key: of several lines of a key the first reply, else the failure that
        was found last.

        Raises:
          InputError: a line that is whole and no entry; names file and line.
        """
        names = listed(self.folder) if self.folder.exists() else []
        for name in names:
            if name.endswith(SUFFIX) and not name.startswith("."):
                for entry in self._lines(self.folder / name):
                    self._keep(entry)
        return self._found

    def add(self, question: Question, decoding: Decoding, sample: int, entry: Entry) -> None:
        """Write a line.

        Raises:
          InputError: another process writes this file; the log is only to be read.
          DiskError: the disk is full or not ours.
        """
        if self.number is None:
            raise InputError("this log is only read", file=self.folder, cure="Give it a number to write")
        line = json.dumps(_record(question, decoding, sample, entry), ensure_ascii=False, allow_nan=False) + "\n"
        with writing("a reply", self.own):
            self._open()
            if self._file is None:
                self._appending.add(self.own, line)
            else:
                _append(self._file, line.encode("utf-8", "backslashreplace"))
        self._keep(entry)

    def close(self) -> None:
        """Let the file go; what waits for a bucket is written first."""
        if self._lock is None:
            return
        self._appending.flush()
        if self._file is not None:
            os.close(self._file)
        self._lock.release()
        self._lock = self._file = None

    def _keep(self, entry: Entry) -> None:
        before = self._found.get(entry.key)
        if before is None or isinstance(before.outcome, Failure):
            self._found[entry.key] = entry

    def _open(self) -> None:
        """Take the file, which no other process may write, and drop what a kill left of its last line."""
        if self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = acquire(self.folder, name=f".lock-{self.number}")
        if is_remote(self.folder):
            self._appending = Appending(self._lock.check)
            return
        self._file = os.open(self.own, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.ftruncate(self._file, _last_line(self._file, size))

    def _lines(self, file: Path) -> Iterator[Entry]:
        """The entries of the whole lines that were not read yet."""
        start, number = self._read.get(file.name, (0, 0))
        size = size_of(file)
        if size <= start:
            return
        whole, _, _ = read_range(file, start, size).rpartition(b"\n")
        if not whole:
            return
        lines = whole.split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield _entry(line, file, number)
        self._read[file.name] = start + len(whole) + 1, number


def key_of(identity: str, question: Question, decoding: Decoding, sample: int = 0) -> str:
    """What a reply is kept under."""
    how = json.dumps([identity, question.digest, dataclasses.asdict(decoding), sample], sort_keys=True)
    return hashlib.sha256(how.encode("utf-8", "backslashreplace")).hexdigest()


def identity_in(entries: Iterable[Entry], folder: str | os.PathLike[str]) -> str:
    """Whose replies a log holds.

    Raises:
      InputError: nobody's, or those of several.
    """
    found = sorted({entry.identity for entry in entries})
    if len(found) != 1:
        held = f"replies of {len(found)} answerers ({', '.join(found[:3])})" if found else "no reply"
        raise InputError(f"holds {held}", file=folder, cure="Give the log of one")
    return found[0]


def _record(question: Question, decoding: Decoding, sample: int, entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {"key": entry.key, "model": entry.identity, "prompt_sha256": question.digest}
    told |= {"decoding": dataclasses.asdict(decoding), "sample": sample}
    outcome = entry.outcome
    if isinstance(outcome, Failure):
        return told | {"failure": outcome._asdict()} | ({"again": entry.again} if entry.again else {})
    firsts = outcome.logprobs
    own = {"text": outcome.text, "finish": outcome.finish}
    kept = None if firsts is None else [[one.token, _finite(one.logprob)] for one in firsts]
    return told | {"reply": own if kept is None else own | {"logprobs": kept}}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else -1e9


def _entry(line: bytes, file: Path, number: int) -> Entry:
    if len(line) > LONGEST_LINE:
        raise InputError(f"has {len(line)} bytes, {LONGEST_LINE} at most", file=file, record=number, cure=CURE)
    fields = Fields(
        parse_json(line, file=file, record=number, cure=CURE, lone_surrogates=True), file, number, cure=CURE
    )
    key, identity = fields.text("key"), fields.text("model")
    if (failed := fields.object("failure", None)) is not None:
        failure = Failure(failed.text("reason"), failed.text("detail", ""))
        return Entry(key, identity, failure, fields.integer("again", 0))
    reply = fields.object("reply")
    firsts = reply.items("logprobs", None)
    told = None if firsts is None else tuple(_candidate(one, reply) for one in firsts)
    return Entry(key, identity, Reply(reply.text("text"), reply.text("finish"), told))


def _candidate(value: Any, reply: Fields) -> Candidate:
    match value:
        case [str(token), int() | float() as logprob]:
            return Candidate(token, float(logprob))
    raise reply.wrong("logprobs", "holds what is no [token, logprob]")


def _append(file: int, line: bytes) -> None:
    """A line, whole on the disk; one that is cut short, as by a full disk, is taken back."""
    before = os.fstat(file).st_size
    try:
        left = memoryview(line)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, before)
        raise


def _last_line(file: int, size: int) -> int:
    """Where the last line of a file begins."""
    end = size
    while end:
        start = max(end - (1 << 16), 0)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
