"""Lines added to the logs of a run, on a disk at once, on a bucket every few seconds."""

from __future__ import annotations

import time
from pathlib import Path

from fusion_jax.paths import is_remote, opened, write_bytes

EVERY = 5.0  # seconds between two writings of an object, which may not be written more than once a second


class Appending:
    """Adds lines to files. Objects of a bucket cannot be appended to: their lines are kept here, and an object is
    written anew when its last writing is `EVERY` seconds ago, and by `flush`. A kill loses what came since."""

    def __init__(self) -> None:
        self._contents: dict[Path, bytes] = {}
        self._written: dict[Path, float] = {}
        self._waiting: set[Path] = set()

    def add(self, file: Path, line: str) -> None:
        """Add a line, given with its end."""
        if not is_remote(file):
            with open(file, "a", encoding="utf-8") as out:
                out.write(line)
            return
        if file not in self._contents:
            self._contents[file] = _content(file)
        self._contents[file] += line.encode()
        self._waiting.add(file)
        if time.monotonic() - self._written.get(file, 0.0) >= EVERY:
            self._write(file)

    def flush(self) -> None:
        """Write what waits."""
        for file in sorted(self._waiting):
            self._write(file)

    def forget(self, file: Path) -> None:
        """Leave a file to somebody who writes it whole; what waits for it is written first."""
        if file in self._waiting:
            self._write(file)
        self._contents.pop(file, None)

    def _write(self, file: Path) -> None:
        write_bytes(file, self._contents[file])
        self._written[file] = time.monotonic()
        self._waiting.discard(file)


def _content(file: Path) -> bytes:
    try:
        with opened(file) as source:
            return source.read()
    except FileNotFoundError:
        return b""
