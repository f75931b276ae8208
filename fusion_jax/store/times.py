"""Where the wall time of a run goes: times.jsonl in each of its folders, and what the lines of all of them add up to.

Times stand beside metrics.jsonl, not in it: metrics of a resumed run are bit for bit those of a run that was left
alone, and times never are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.json_files import parse_json
from fusion_jax.paths import files_below, read_bytes, stamp
from fusion_jax.store.compiling import compiling

TIMES = "times.jsonl"  # {"stage", "step"?, "seconds", "seconds/PHASE"...}: a line for each part of a stage
PREFIX = "seconds/"
COMPILATION = "compilation"


class Clock:
    """Divides the wall time of a stage among its phases. Of each, what JAX says to have been tracing and compiling is a
    phase of its own, "compilation".

    Args:
      write: takes a line of times.jsonl.
      outer: the clock of what the stage is part of; the time that this clock counts is left out there.
    """

    def __init__(self, stage: str, write: Callable[[dict[str, Any]], None], outer: Clock | None = None) -> None:
        self.stage, self.phase, self.whole, self._lap = stage, "", Spent(), Spent()
        self._write, self._outer = write, outer
        if outer is not None:
            outer.took()
        self._last, self._compiled = time.monotonic(), compiling().seconds

    def took(self, phase: str | None = None) -> None:
        """The time since the last call went into `phase`; when left out, into the phase that is under way."""
        now, phase = time.monotonic(), self.phase if phase is None else phase
        seconds, self._last = now - self._last, now
        before, self._compiled = self._compiled, compiling().seconds
        compiled = min(self._compiled - before, seconds)
        self._lap.add(seconds, {COMPILATION: compiled} if compiled > 0 else {})
        self._lap.add(0.0, {phase: seconds - compiled} if phase else {})

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Time inside goes into `phase`, but for that of phases inside it."""
        self.took()
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.took()
            self.phase = before

    def lap(self, **where: int) -> None:
        """Write what was counted since the last lap.

        Args:
          where: what else the line says, for instance `step`.
        """
        self.took()
        spent, self._lap = self._lap, Spent()
        phases = {f"{PREFIX}{name}": round(seconds, 3) for name, seconds in spent.phases.items()}
        self._write({"stage": self.stage, **where, "seconds": round(spent.seconds, 3), **phases})
        self.whole.add(spent.seconds, spent.phases)
        if self._outer is not None:
            self._outer._last, self._outer._compiled = self._last, self._compiled

    def in_words(self) -> str:
        """What was counted so far: "15 s (sampling 12 s, scoring 3 s)"."""
        self.took()
        so_far = Spent()
        for part in (self.whole, self._lap):
            so_far.add(part.seconds, part.phases)
        return f"{so_far.seconds:.0f} s" + (f" ({so_far.in_words()})" if so_far.in_words() else "")


@dataclass
class Spent:
    """Seconds of a stage. phases: those of them that are known to have gone into one kind of work."""

    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, phases: Mapping[str, float]) -> None:
        self.seconds += seconds
        for name, part in phases.items():
            self.phases[name] = self.phases.get(name, 0.0) + part

    def in_words(self) -> str:
        """The phases that took half a second or more, the longest first: "sampling 12 s, scoring 3 s"."""
        longest = sorted(self.phases.items(), key=lambda phase: -phase[1])
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in longest if seconds >= 0.5)


def times(folder: Path) -> dict[str, Spent]:
    """What each stage of a run took, over all starts; stages in the order in which they began."""
    spent: dict[str, Spent] = {}
    every = [file for file in files_below(folder) if file.name == TIMES]
    for path in sorted(every, key=lambda file: (len(file.parts), stamp(file)[-1])):
        inside = path.parent.relative_to(folder).as_posix()
        for line in read_bytes(path).split(b"\n"):
            with suppress(InputError):  # a line that a kill cut short
                values = parse_json(line)
                record = Fields(values, path)
                name, seconds = record.text("stage"), record.number("seconds", low=0)
                named = [key for key in values if key.startswith(PREFIX)]
                phases = {key.removeprefix(PREFIX): record.number(key, low=0) for key in named}
                spent.setdefault(name if inside == "." else f"{inside}: {name}", Spent()).add(seconds, phases)
    return spent
