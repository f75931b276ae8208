"""Lines added to the logs of a run, on a disk at once, on a bucket every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from fusion_jax.errors import DiskError
from fusion_jax.paths import is_remote, read_bytes, write_bytes

EVERY = 10.0  # seconds between two writings of a bucket's logs


class Appending:
    """Adds lines to files.

    Objects of a bucket cannot be appended to: their lines are kept here. All that have new ones are written anew by
    `flush` and, in a thread of its own, when that is `EVERY` seconds ago. A kill loses what came since.

    Args:
      check: raises an error where the files are no longer this process's to write; asked before each writing.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._contents: dict[Path, bytearray] = {}
        self._there: dict[Path, int] = {}  # bytes of each that are on the bucket
        self._began = -EVERY
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def add(self, file: Path, line: str) -> None:
        """Add a line, given with its end.

        Raises:
          FolderLost: as `check` found, when lines before this one were to be written.
        """
        if not is_remote(file):
            with open(file, "a", encoding="utf-8", errors="backslashreplace") as out:
                out.write(line)
            return
        if file not in self._contents:
            self._contents[file] = bytearray(_content(file))
            self._there[file] = len(self._contents[file])
        self._contents[file] += line.encode(errors="backslashreplace")
        if self._writing is not None and self._writing.done():
            self._settle()
        if self._writing is None and time.monotonic() - self._began >= EVERY:
            self._writing = self._writer.submit(self._write, self._waiting())

    def flush(self) -> None:
        """Write what waits, and return when it is there."""
        self._settle()
        if waiting := self._waiting():
            self._write(waiting)

    def forget(self, file: Path) -> None:
        """Leave a file to somebody who writes it whole; what waits for it is written first."""
        if file in self._contents:
            self.flush()
            del self._contents[file]

    def _waiting(self) -> dict[Path, bytes]:
        self._began = time.monotonic()
        return {file: bytes(content) for file, content in self._contents.items() if len(content) > self._there[file]}

    def _write(self, contents: Mapping[Path, bytes]) -> None:
        for file, content in contents.items():
            self._check()
            write_bytes(file, content)
            self._there[file] = len(content)

    def _settle(self) -> None:
        """Wait for what is being written. What the bucket did not take now is tried again by the next writing."""
        if self._writing is not None:
            error, self._writing = self._writing.exception(), None
            if error is not None and not isinstance(error, DiskError):
                raise error


def _content(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except FileNotFoundError:
        return b""
