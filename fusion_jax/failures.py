"""The last net: faults that are not the program's become one line that says what was being done and what would help.

Bad input, the disk, the terminal and memory have such a line; every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fusion_jax.errors import causes, first_line, one_line
from fusion_jax.files import FAULTS, reason
from fusion_jax.paths import bucket_fault

KEPT = "its traceback is in "  # begins the note of an error whose traceback a log holds
TRACEBACK = "FUSION_JAX_TRACEBACK"  # set to 1: every failure shows where it came from
INTERRUPTED = 130  # exit code after Ctrl-C: 128 and the number of SIGINT

_SPACE = re.compile(r"no space left on device|disk quota exceeded|not enough (?:disk )?space", re.IGNORECASE)
_READ_ONLY = re.compile(r"read-only file system", re.IGNORECASE)
_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|std::bad_alloc|cannot allocate memory", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.])(/[^\s'\":;,\[\]]+)")
_TEMPORARY = re.compile(r"^\.(.+?)\.[\w-]*\d[\w-]*\.tmp$")  # .NAME.ID.tmp, beside NAME
LESS_MEMORY = {
    "batch_size": "lower", "teacher_batch": "lower", "max_length": "lower", "max_new_tokens": "lower",
    "eval_new_tokens": "lower", "micro_batches": "raise", "remat": "full in", "mesh_fsdp": "-1 in",
    "mesh_tensor": "raise", "devices": "raise",
}  # fmt: skip


class NothingToDo(SystemExit):
    """The end of a program that finds its work done: no failure, and exit code 0."""

    def __init__(self) -> None:
        super().__init__(0)


class Failure(NamedTuple):
    """How a fault is told: its line and the exit code."""

    line: str
    code: int


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Around a piece of work: an exception that passes remembers what was being done, the innermost first."""
    try:
        yield
    except Exception as error:
        if what not in getattr(error, "__notes__", ()):
            error.add_note(what)
        raise


def failure_of(error: BaseException, options: Sequence[str] = ()) -> Failure | None:
    """The line of a fault that is not the program's; None for a bug.

    Args:
      options: of the program, as dotted names: those that lessen memory are told where it did not suffice.
    """
    notes = _notes(error)
    while_ = f" while {notes[0]}" if notes else ""
    chain = list(causes(error))
    remote = bucket_fault(error)
    if remote is not None:
        return Failure(f"{one_line(str(error).split('?')[0])}: {remote.problem}{while_}. {remote.cure}.", 2)
    full = next((e for e in chain if _is_full(e)), None)
    if full is not None:
        place = _place(full) or next(filter(None, map(_place, chain)), "") or "the disk"
        return _of_disk(errno.ENOSPC, place, while_)
    if any(isinstance(e, MemoryError) or _device_memory(e) for e in chain):
        where = " of the devices" if any("RESOURCE_EXHAUSTED" in str(e) for e in chain) else ""
        return Failure(f"the memory{where} does not suffice{while_}{_detail(chain)}. {_less(options)}", 1)
    if isinstance(error, OSError):
        return _of_system(error, while_)
    read_only = next((e for e in chain if _READ_ONLY.search(str(e))), None)
    if read_only is not None:
        place = _place(read_only) or "the disk"
        return _of_disk(errno.EROFS, place, while_)
    if isinstance(error, UnicodeError):
        problem = f"a text cannot be written or read as {getattr(error, 'encoding', None) or 'UTF-8'}"
        why = f" ({one_line(str(error), 120)})"
        return Failure(f"{problem}{while_}{why}. Use UTF-8: files, and PYTHONIOENCODING=utf-8 for the terminal.", 2)
    if isinstance(error, RecursionError):
        return Failure(f"something is nested too deeply to be read{while_}. Look for what is nested in the input.", 1)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return Failure(f"a path holds a NUL character{while_}. Check the paths.", 2)
    return None


def _notes(error: BaseException) -> list[str]:
    every = [note for e in causes(error) for note in getattr(e, "__notes__", ()) if note]
    return [note for note in every if not note.startswith(KEPT)]


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or bool(_SPACE.search(str(error)))


def _device_memory(error: BaseException) -> bool:
    """Whether an error of XLA, or of a library below it, says that memory did not suffice."""
    runtime = any(kind.__name__ in ("JaxRuntimeError", "XlaRuntimeError", "RuntimeError") for kind in type(error).mro())
    return (runtime or getattr(error, "errno", None) == errno.ENOMEM) and bool(_MEMORY.search(str(error)))


def _detail(chain: Sequence[BaseException]) -> str:
    """How much was asked for, where the error says it."""
    for error in chain:
        found = re.search(r"allocat\w*\s+([\d.,]+\s?(?:[KMGT]i?B|bytes))", str(error), re.IGNORECASE)
        if found:
            return f" ({found[1]} were asked for)"
    return ""


def _less(options: Sequence[str]) -> str:
    """Which options lessen memory."""
    cures: dict[str, list[str]] = {}
    for name in options:
        last = name.replace("-", "_").rpartition(".")[2]
        if last in LESS_MEMORY:
            cures.setdefault(LESS_MEMORY[last], []).append(f"--{name}")
    changes = "; ".join(f"{cure} {', '.join(names)}" for cure, names in cures.items())
    return f"To use less: {changes}." if changes else "Use fewer or smaller models and batches, or more memory."


def _of_system(error: OSError, while_: str) -> Failure:
    if error.errno is None:
        return Failure(f"{one_line(str(error)) or type(error).__name__}{while_}.", 2)
    if error.errno in FAULTS:
        return _of_disk(error.errno, _place(error), while_)
    place = _place(error)
    problem = f"{place}: {reason(error)}" if place else reason(error)
    return Failure(f"{problem}{while_}. Put this right, then start again.", 2)


def _of_disk(number: int, place: str, while_: str) -> Failure:
    problem, cure = FAULTS[number]
    return Failure(f"{place}{': ' if place else ''}{problem}{while_}. {cure}.", 2)


def _place(error: BaseException) -> str:
    """The file of an error, by the name that a user knows; from its text where it does not carry one."""
    named = [n for n in (getattr(error, "filename2", None), getattr(error, "filename", None)) if n]
    if not named:
        found = _PATH.search(str(error))
        named = [found[1].rstrip(".")] if found else []
    if not named:
        return ""
    path = Path(os.fsdecode(named[-1]) if not isinstance(named[-1], int) else str(named[-1]))
    temporary = _TEMPORARY.match(path.name)
    return one_line(str(path.with_name(temporary[1]) if temporary else path))


def for_log(error: BaseException, failure: Failure | None = None) -> str:
    """An error's line and traceback, as a log holds them.

    Args:
      failure: how the error is told; None: as `failure_of` tells it without a program's options.
    """
    failure = failure or failure_of(error)
    line = first_line(error) if failure is None else failure.line
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} error: {line}\n{''.join(traceback.format_exception(error))}"


def tell(failure: Failure, error: BaseException, out: str = "") -> None:
    """The line on the screen; the traceback in log.txt of the run folder, if there is one, or on the screen if asked
    for.

    Args:
      out: the run's folder, on a disk; what happened in an open run is in its log already.
    """
    notes = [note for e in causes(error) for note in getattr(e, "__notes__", ())]
    place = next((note.removeprefix(KEPT) for note in notes if note.startswith(KEPT)), "")
    with contextlib.suppress(OSError, ValueError, UnicodeError):
        if not place and out and os.path.isdir(out):
            with open(log := os.path.join(out, "log.txt"), "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(for_log(error, failure))
            place = log
    kept = f" (where it came from: {place})" if place else ""
    if os.environ.get(TRACEBACK):
        print("".join(traceback.format_exception(error)), file=sys.stderr, end="")
    elif not kept:
        kept = f" ({TRACEBACK}=1 shows where it came from)"
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {failure.line}{'' if os.environ.get(TRACEBACK) else kept}", file=sys.stderr, flush=True)


@contextmanager
def readable_streams() -> Iterator[None]:
    """Let a terminal that is not UTF-8 show what it cannot as escapes; a reader that goes away (`| head`) ends the
    program without a word."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            if (stream.encoding or "utf-8").lower().replace("-", "") != "utf8":
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nor has what is flushed at the end a reader
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
