"""Who writes a folder: one process, which sweeps away what killed ones left."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_jax import InputError
from fusion_jax.store.lock import LOCK, acquire, held, is_held, sweep

ROOT = Path(__file__).parents[2]
HOLD = "import sys; from pathlib import Path; from fusion_jax.store.lock import acquire\n"
HOLD += "lock = acquire(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_a_dead_one_blocks_nobody(tmp_path, other):
    assert is_held(tmp_path)
    wanted = rf"is being written by another process \({other.pid} on {socket.gethostname()}, since .*\)\. Wait for it"
    with pytest.raises(InputError, match=wanted):
        acquire(tmp_path)
    other.kill()
    other.wait()
    assert (tmp_path / LOCK).exists() and not is_held(tmp_path)
    with held(tmp_path):
        assert is_held(tmp_path)
    assert not (tmp_path / LOCK).exists() and not is_held(tmp_path)


def test_without_locks_of_the_file_system_a_live_process_of_this_host_is_still_seen(tmp_path, other, monkeypatch):
    def flock(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fusion_jax.store.lock.fcntl.flock", flock)
    with pytest.raises(InputError, match=f"another process \\({other.pid} on"):
        acquire(tmp_path)
    other.kill()
    other.wait()
    with held(tmp_path) as lock:
        assert "no locks" in lock.note


def test_temporaries_of_killed_processes_are_swept(tmp_path):
    gone = [".model.123.tmp/model.safetensors", f"sft/.a.jsonl.{'0a' * 16}.tmp", f"x/.dpo.{'f' * 32}.tmp/deep/w"]
    kept = ["model/model.safetensors", "notes.tmp", ".mine.tmp", ".model.123.tmp2", "x/.cache/y"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (tmp_path / ".link.7.tmp").symlink_to(outside)
    assert len(sweep(tmp_path, lambda name: "dpo" not in name)) == 3
    assert (tmp_path / gone[2]).exists() and (outside / "file").exists()
    sweep(tmp_path)
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {*kept, "outside/file"} and not os.path.lexists(tmp_path / ".link.7.tmp")
