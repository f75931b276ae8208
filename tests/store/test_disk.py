"""A full disk, wherever it is met: one line that says what was being written, and a run that goes on afterwards."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from fusion_jax import InputError
from fusion_jax.data.documents import TeacherRow
from fusion_jax.files import DiskError, fault, writing
from fusion_jax.store.parts import Job, Part, Stored, make_parts
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.teachers.store import StoreIdentity, TeacherStore, write_store
from fusion_jax.train.checkpoints import Checkpoints, finishing, restore_state, save_state
from fusion_jax.train.state import TrainState

pytestmark = pytest.mark.usefixtures("quick_compiler")


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file of this process may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def state(step: int) -> TrainState:
    weights = jax.random.normal(jax.random.key(0), (1 << 18,))
    return TrainState(
        step=jnp.asarray(step), params={"w": weights}, opt_state={"m": weights}, halted=jnp.asarray(False)
    )


def test_a_checkpoint_on_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, capfd, caplog):
    run = RunFolder(tmp_path, Console(quiet=True))
    first = Checkpoints(run)
    wanted = r"checkpoints: a checkpoint cannot be written: .*\. Raise the limit"
    with pytest.raises(DiskError, match=wanted), finishing(first):
        save_state(first, state(1))
        first.finish()
        with small_disk(100_000):
            save_state(first, state(2))
            save_state(first, state(3))
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    second = Checkpoints(run)
    with finishing(second):
        kept = restore_state(second, state(0))
        assert kept is not None and int(kept.step) == 1
        save_state(second, state(2))
    assert second.latest() == 2


def test_a_checkpoint_that_was_changed_is_not_restored(tmp_path):
    run = RunFolder(tmp_path, Console(quiet=True))
    with finishing(checkpoints := Checkpoints(run)):
        save_state(checkpoints, state(3))
    largest = max((p for p in (tmp_path / "checkpoints/3").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    again = Checkpoints(run)
    with pytest.raises(InputError, match=r"was changed after it was written.*Delete .*checkpoints; the stage then"):
        restore_state(again, state(0))
    again.manager.close()


IDENTITY = StoreIdentity("m", "t", "d", k=3, records=4, part_size=2)


def rows(wanted: range) -> list[TeacherRow]:
    rng = np.random.default_rng(wanted.start)
    n = 8000
    one = TeacherRow(
        rng.integers(0, 9, n), np.zeros((n, 2)), rng.integers(0, 9, (n, 3)), -rng.random((n, 3)), rng.random(n),
        rng.random(n), np.ones(2),
    )  # fmt: skip
    return [one for _ in wanted]


def test_a_teacher_store_on_a_full_disk_goes_on_at_its_missing_part(tmp_path):
    wanted = r"part-00000\.array_record: a part of a teacher store cannot be written: "
    with pytest.raises(DiskError, match=wanted), small_disk(50_000):
        write_store(tmp_path / "store", IDENTITY, rows)
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    (tmp_path / f"store/.part-00001.array_record.{'0' * 32}.tmp").write_text("killed")
    write_store(tmp_path / "store", IDENTITY, rows)
    assert len(list(TeacherStore(tmp_path / "store", IDENTITY))) == 4
    names = {p.name for p in (tmp_path / "store").iterdir()}
    assert names == {"store.json", "part-00000.array_record", "part-00001.array_record"}


def test_a_flipped_byte_of_a_teacher_store_is_seen_or_does_not_matter(tmp_path):
    """The parts' own format has hashes, and is filled up with bytes that nobody reads."""
    write_store(tmp_path / "store", IDENTITY, rows)
    part, seen = tmp_path / "store/part-00001.array_record", 0
    raw, wanted = part.read_bytes(), rows(range(2, 4))
    for place in range(40):
        changed = bytearray(raw)
        changed[len(raw) * place // 40] ^= 16
        part.write_bytes(changed)
        try:
            found = list(TeacherStore(tmp_path / "store", IDENTITY))[2:]
        except InputError as error:
            assert "part-00001.array_record" in str(error) and "Delete the part" in str(error)
            seen += 1
        else:
            assert all((np.asarray(a, b.dtype) == b).all() for x, y in zip(wanted, found) for a, b in zip(x, y))
    assert seen >= 20


class Doubled:
    def one(self, item: int) -> int:
        return 2 * item

    def pack(self, results: list[int]) -> dict[str, np.ndarray]:
        return {"lengths": np.ones(len(results), np.int32), "values": np.asarray(results, np.int64)}


def doubled(folder: Path) -> list[int]:
    job = Job(folder, {"what": "doubled"}, 5, 2)
    make_parts(job, Doubled(), lambda wanted: list(wanted), 0, lambda done: None)

    def read(part: Part, number: int) -> int:
        return int(part.some("values", part.lengths, number)[0])

    return list(Stored(job, read))


def test_parts_that_were_changed_or_changed_places_are_refused(tmp_path):
    assert doubled(tmp_path) == [0, 2, 4, 6, 8]
    first, second = (tmp_path / f"part-0000{i}.safetensors" for i in (0, 1))
    whole = first.read_bytes()
    for damage in (whole[:-1] + bytes([whole[-1] ^ 1]), second.read_bytes(), whole[:-3], b""):
        first.write_bytes(damage)
        with pytest.raises(InputError, match=r"part-00000\.safetensors: .*Delete this part and run again: it goes on"):
            doubled(tmp_path)
    first.unlink()
    assert doubled(tmp_path) == [0, 2, 4, 6, 8] and first.read_bytes() == whole
    assert not (tmp_path / ".lock").exists()


def test_what_a_device_says_is_told_in_one_line():
    wanted = r"a.bin: a file cannot be written: the disk is full\. Free space"
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(DiskError, match=wanted), writing("a file", "a.bin"), full:
        full.write(b"x")
    try:
        try:
            raise ValueError("UNKNOWN: Error writing; No space left on device [OS error 28]")
        except ValueError as inner:
            raise RuntimeError("in a thread") from inner
    except RuntimeError as error:
        assert fault(error) == errno.ENOSPC
    several = ExceptionGroup("several", [KeyError(1), OSError(errno.EROFS, os.strerror(errno.EROFS), "a")])
    assert fault(several) == errno.EROFS
    assert fault(ValueError("the disk is round")) is None and fault(InputError("x")) is None
    with pytest.raises(ZeroDivisionError), writing("a file", "a"):
        1 / 0  # noqa: B018
