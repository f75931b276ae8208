"""What is not a bug ends with one line that says what was being done; a bug keeps its traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from fusion_jax.failures import doing, failure_of
from fusion_jax.settings import run as run_experiment


@dataclass(frozen=True)
class Train:
    batch_size: int = 4
    micro_batches: int = 1
    remat: str = "dots"


@dataclass(frozen=True)
class Settings:
    out: str = ""
    resume: bool = False
    preference: Train = Train()


def ended(raising: Callable[[], Any], capsys: pytest.CaptureFixture[str], out: str = "") -> tuple[int, str]:
    def main(s: Settings) -> None:
        with doing("training wrpo"):
            raising()

    with pytest.raises(SystemExit) as stopped:
        run_experiment(Settings, main, description="", args=["--out", out] if out else [])
    line = capsys.readouterr().err
    assert line.strip().count("\n") == 0 and "Traceback" not in line and len(line) < 900, line
    code = stopped.value.code
    assert isinstance(code, int)
    return code, line


def throw(error: BaseException) -> Callable[[], Any]:
    def raising() -> None:
        raise error

    return raising


def wrapped() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/run/.weights.4711.tmp")
    except OSError as error:
        raise RuntimeError("saving failed") from error


def nested() -> None:
    json.loads("[" * 100_000)


def grouped() -> None:
    raise ExceptionGroup("two", [ValueError("x"), OSError(errno.EDQUOT, "Disk quota exceeded", "/disk/a")])


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_is_one_line(number, capsys):
    error = OSError(number, os.strerror(number), "/disk/file")
    if isinstance(error, BrokenPipeError):
        return
    code, line = ended(throw(error), capsys)
    memory = number == errno.ENOMEM
    assert line.startswith("error: the memory does not" if memory else "error: /disk/file: ")
    assert "while training wrpo" in line and code == (1 if memory else 2)


OTHERS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "no number": (throw(OSError("Consistency check failed")), 2, "Consistency check failed while training wrpo"),
    "other's text": (
        throw(ValueError("UNKNOWN: Error writing '/disk/run/checkpoints/5/d/abc': [OS error 28: No space left on device]")), 2,
        "/disk/run/checkpoints/5/d/abc: the disk is full while training wrpo. Free space"),
    "store": (
        throw(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: write: No space left on device")), 2, "the disk is full"),
    "wrapped": (wrapped, 2, "/disk/run/weights: the disk is full"), "grouped": (grouped, 2, "/disk/a: the disk is full"),
    "read-only": (throw(RuntimeError("open /disk/x: Read-only file system")), 2, "/disk/x: the file system is read-only while"),
    "memory": (throw(MemoryError()), 1, "the memory does not suffice while training wrpo. To use less: lower --preference.batch-size; raise --preference.micro-batches; full in --preference.remat"),
    "numpy memory": (throw(MemoryError("Unable to allocate 1.5 GiB for an array")), 1, "(1.5 GiB were asked for)"),
    "device memory": (
        throw(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17.5GiB.")), 1,
        "the memory of the devices does not suffice while training wrpo (17.5GiB were asked for). To use less: lower --preference.batch-size"),
    "allocator": (throw(RuntimeError("std::bad_alloc")), 1, "does not suffice"),
    "recursion": (nested, 1, "nested too deeply"),
    "surrogates": (lambda: "\udcff".encode(), 2, "a text cannot be written or read as utf-8 while training wrpo"),
    "not utf-8": (lambda: b"\xff".decode(), 2, "a text cannot be written or read as utf-8"),
    "nul": (lambda: Path("a\0b").read_text(), 2, "a path holds a NUL character"),
    "folder": (lambda: Path("/").read_text(), 2, "/: is a directory while training wrpo"),
    "loop": (throw(OSError(errno.ELOOP, "Too many levels of symbolic links", "/a/b")), 2, "/a/b: the path is a loop of links"),
    "megabyte": (throw(OSError(errno.EIO, "Input/output error", "x" * 10**6)), 2, "input/output error"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_faults_are_one_line(kind, capsys):
    raising, wanted, told = OTHERS[kind]
    code, line = ended(raising, capsys)
    assert code == wanted and told in line and "FUSION_JAX_TRACEBACK=1 shows where it came from" in line


def test_a_run_folder_keeps_the_traceback(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    code, line = ended(throw(MemoryError()), capsys, str(tmp_path))
    log = (tmp_path / "log.txt").read_text()
    assert code == 1 and f"(where it came from: {tmp_path / 'log.txt'})" in line
    assert "error: the memory does not suffice" in log and "Traceback" in log and "in raising" in log


def test_the_traceback_is_shown_if_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("FUSION_JAX_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_experiment(Settings, lambda s: print(Path("/nowhere/x").read_text()), description="", args=[])
    told = capsys.readouterr().err
    assert "Traceback" in told and told.endswith("error: /nowhere/x: there is no such place. Check the path, or choose another --out.\n")


@pytest.mark.parametrize("bug", [KeyError("a"), TypeError("x"), ValueError("shapes"), AssertionError(), jax.errors.JaxRuntimeError("INTERNAL: x")])
def test_a_bug_is_not_hidden(bug):
    with pytest.raises(type(bug)):
        run_experiment(Settings, lambda s: throw(bug)(), description="", args=[])
    assert failure_of(bug) is None


def test_ctrl_c_says_how_to_go_on(capsys):
    code, line = ended(throw(KeyboardInterrupt()), capsys)
    assert code == 130 and line.strip() == "error: interrupted; the same command with --resume goes on."


def test_a_reader_that_went_away_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_experiment(Settings, lambda s: throw(BrokenPipeError(errno.EPIPE, "Broken pipe"))(), description="", args=[])
    assert stopped.value.code == 1 and capsys.readouterr().err == ""


def test_a_terminal_that_is_not_utf_8_shows_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    run_experiment(Settings, lambda s: print("模型 é"), description="", args=[])
    assert raw.getvalue() == b"\\u6a21\\u578b \\xe9\n"


def test_what_was_done_is_remembered_once_and_from_the_inside():
    with pytest.raises(OSError) as error, doing("fusing"), doing("saving sft"), doing("saving sft"):
        Path("/nowhere/x").read_text()
    assert error.value.__notes__ == ["saving sft", "fusing"]
