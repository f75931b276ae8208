"""One process writes a folder of a bucket, and one that lost it writes nothing there any more."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fusion_jax import InputError, paths
from fusion_jax.data.batches import Data, Example
from fusion_jax.merge.executor.merging import merge
from fusion_jax.models.folder import save
from fusion_jax.runs import opening
from fusion_jax.runs.opening import open_run
from fusion_jax.settings import run as run_experiment
from fusion_jax.store import appending, lease, lock
from fusion_jax.store.appending import Appending
from fusion_jax.store.lease import FolderLost
from fusion_jax.store.lock import LOCK, acquire, held
from fusion_jax.store.parts import Job, make_parts
from fusion_jax.store.run_folder import RunFolder, append_metrics, truncate_metrics
from fusion_jax.teachers.store import StoreIdentity, write_store
from fusion_jax.train import objectives, optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from tests import gcs
from tests.small import ROOT, small_model
from tests.store.test_bucket import Lengths, rows

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_one_process_holds_a_folder(bucket, quick):
    with held(bucket) as first:
        with pytest.raises(InputError, match=r"is being written by another process .* Wait for it, or choose another"):
            acquire(bucket)
        first.check()
    assert not (bucket / LOCK).exists()
    acquire(bucket).release()


def test_of_processes_that_want_a_folder_at_once_one_gets_it(bucket, quick):
    got, refused = [], []

    def want() -> None:
        try:
            got.append(acquire(bucket))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 3
    got[0].release()


def test_a_lock_that_stands_still_is_taken_over_and_its_holder_learns_it(bucket, quick, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 60.0)
    cut_off = acquire(bucket)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    second = acquire(bucket)
    assert second.path == cut_off.path
    with pytest.raises(InputError, match="another process took the folder over"):
        cut_off.check()
    second.check()
    cut_off.release()
    assert (bucket / LOCK).exists()
    second.release()
    assert not (bucket / LOCK).exists()


def test_a_killed_process_of_this_machine_blocks_nobody(bucket, server):
    code = "import sys; from fusion_jax.paths import as_path; from fusion_jax.store.lock import acquire\n"
    code += "lock = acquire(as_path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(bucket)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    process.kill()
    process.communicate()
    assert (bucket / LOCK).exists()
    started = time.monotonic()
    acquire(bucket).release()
    assert time.monotonic() - started < lease.BEAT


def test_the_thread_that_keeps_a_lock_keeps_nothing_alive(bucket, quick):
    held_ = acquire(bucket)
    gone, thread = weakref.ref(held_), held_._thread
    assert thread.daemon
    del held_
    gc.collect()
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive()
    acquire(bucket).release()  # it stands still from then on


@pytest.mark.parametrize("changes, ended", [
    ({"host": "other name"}, False),  # of the same machine: containers may have the processes in common
    ({"pid": 2**22 + 1}, True),
    ({"started": "0"}, True),
    ({"pid": 2**22 + 1, "machine": "the same boot, other processes"}, False),  # and the same host name
    ({"pid": 2**22 + 1, "machine": ""}, False),
    ({"pid": "a word"}, False),
])  # fmt: skip
def test_only_a_process_that_is_known_to_have_ended_is_not_waited_for(changes, ended):
    assert lock._ended({"id": "another", **lock._me(), **changes}) == ended


# A folder that is lost


@pytest.fixture
def stopped(monkeypatch):
    """As if the process had been stopped before each look at its lock, whose thread does not see to it."""
    monkeypatch.setattr(lease, "BEAT", 60.0)
    monkeypatch.setattr(lease, "SAFE", 0.0)


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: paths.read_bytes(folder / name) for name in paths.names_below(folder)}


def _lose(folder: Path, name: str = LOCK) -> dict[str, bytes]:
    """Have another process take the folder over; what is there at that moment."""
    paths.write_bytes(folder / name, json.dumps({"id": "another"}).encode())
    return _contents(folder)


LOST = "another process took the folder over"


def test_a_lock_that_was_not_renewed_is_looked_at_before_it_is_trusted(bucket, monkeypatch):
    monkeypatch.setattr(lease, "SAFE", 0.3)
    monkeypatch.setattr(lease, "BEAT", 60.0)
    mine = acquire(bucket)
    _lose(bucket)
    mine.check()  # nobody could have taken it so soon
    time.sleep(0.35)
    with pytest.raises(FolderLost, match=LOST):
        mine.check()


def test_a_run_that_lost_its_folder_writes_nothing_more(bucket, stopped, monkeypatch):
    monkeypatch.setattr(appending, "EVERY", 0.0)

    def logging(run: RunFolder) -> None:
        for _ in range(500):  # until the thread that writes has seen it
            run.log("still here")
            time.sleep(0.02)

    def making(run: RunFolder, before: Callable[[], object]) -> None:
        run.stage("c.jsonl", lambda: (before(), [{"n": 2}])[1])

    with pytest.raises(FolderLost, match=LOST), open_run(bucket, {"out": ""}, resume=False) as run:
        run.stage("a.jsonl", lambda: [{"n": 1}])
        append_metrics(run, {"step": 0, "loss": 1.0})
        run.appending.flush()
        there: dict[str, bytes] = {}
        with pytest.raises(FolderLost):
            making(run, lambda: there.update(_lose(bucket)))
        for work in (
            logging,
            lambda run: run.stage("b.jsonl", lambda: [{"n": 2}]),
            lambda run: truncate_metrics(run, 0),
            lambda run: run.finish(),
        ):
            with pytest.raises(FolderLost):
                work(run)
    assert there and _contents(bucket) == there


@pytest.mark.parametrize("moment", ["reference.npy", "checkpoint", "log"])
def test_training_that_lost_its_folder_writes_nothing_more(server, stopped, monkeypatch, moment):
    bucket = paths.as_path(f"gs://runs/lost-at-{moment}")
    monkeypatch.setattr(appending, "EVERY", 0.0 if moment == "log" else 60.0)
    settings = TrainSettings(
        optimizer=OptimizerSettings(learning_rate=1e-2), batch_size=2, micro_batches=1, log_every=1,
        checkpoint_every=2 if moment == "checkpoint" else 100, epochs=50 if moment == "log" else 1,
    )  # fmt: skip
    there: dict[str, bytes] = {}

    def loses(work: Callable[..., Any]) -> Callable[..., Any]:
        def first(*args: Any, **options: Any) -> Any:
            if not there:
                run.appending.flush()
                there.update(_lose(bucket))
            return work(*args, **options)

        return first

    changed = "with_reference" if moment == "reference.npy" else "append_metrics"
    monkeypatch.setattr(optimise, changed, loses(getattr(optimise, changed)))
    examples = [Example(((1, 2 + i, 3), (1, 2 + i, 4)), (1, 1), i) for i in range(8)]
    with pytest.raises(FolderLost, match=LOST), open_run(bucket, {"out": ""}, resume=False) as run:
        optimise.optimise(small_model(), Data(examples), objectives.pair(objectives.PairSettings()), settings, run)
    assert there and _contents(bucket) == there


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, quick_compiler: None) -> list[Path]:
    """Two model folders."""
    folder, model = tmp_path_factory.mktemp("models"), small_model()
    for name in "ab":
        save(model, folder / name)
    return [folder / name for name in "ab"]


@pytest.mark.parametrize("begun", [0.0, 0.5])
def test_a_merge_that_lost_its_folder_writes_and_removes_nothing_more(bucket, stopped, models, begun):
    there: dict[str, bytes] = {}

    def lose(done: int, total: int, name: str) -> None:
        if done > begun * total and not there:
            there.update(_lose(bucket))

    recipe = {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models]}
    with pytest.raises(FolderLost, match=LOST):
        merge(recipe, bucket, shard_bytes=20_000, progress=lose)
    assert there and _contents(bucket) == there
    assert any(name.startswith("records/") for name in there) == bool(begun)


@pytest.mark.parametrize("lost_at", [0, 2])
def test_a_teacher_store_that_lost_its_folder_writes_and_removes_nothing_more(bucket, stopped, lost_at):
    there: dict[str, bytes] = {}

    def of(wanted: range) -> list[Any]:
        if wanted.start == lost_at:
            there.update(_lose(bucket))
        return rows(wanted)

    with pytest.raises(FolderLost, match=LOST):
        write_store(bucket, StoreIdentity("model", "tokenizer", "documents", k=2, records=7, part_size=2), of)
    assert there and _contents(bucket) == there


@pytest.mark.parametrize("workers", [0, 1])
def test_parts_of_a_lost_folder_are_not_written(bucket, stopped, workers):
    there: dict[str, bytes] = {}

    def items(wanted: range) -> list[int]:
        if wanted.start == 0:
            there.update(_lose(bucket))
        return list(wanted)

    with pytest.raises(FolderLost, match=LOST):
        make_parts(Job(bucket, {"of": "numbers"}, records=5, part_size=2), Lengths(), items, workers, lambda done: None)
    assert there and _contents(bucket) == there


# How a run ends


def _refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the bucket takes nothing."""
    monkeypatch.setattr(gcs, "refusal", lambda command, bucket, name: 403)


def test_the_first_error_is_raised_and_the_lock_is_let_go_where_the_bucket_fails_too(bucket, quick, monkeypatch):
    with pytest.raises(ZeroDivisionError), open_run(bucket, {"out": ""}, resume=False) as run:
        run.log("begun")
        _refused(monkeypatch)
        raise ZeroDivisionError
    assert not run.lock._thread.is_alive()
    with pytest.raises(InputError, match="no permission"), monkeypatch.context() as patch:
        patch.undo()
        with open_run(bucket, {"out": ""}, resume=True) as run:
            run.log("begun")
            _refused(patch)
    assert not run.lock._thread.is_alive()


def test_a_run_that_cannot_be_opened_is_not_held(bucket, quick, monkeypatch):
    with open_run(bucket, {"out": ""}, resume=False) as run:
        run.stage("a.jsonl", lambda: [{"n": 1}])
    for name, work in (("_inputs", "inputs"), ("seen", "another host")):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=work):
            patch.setattr(opening, name, _raising(InputError(work)))
            open_run(bucket, {"out": ""}, resume=True)
        assert LOCK not in paths.listed(bucket)


def _raising(error: Exception) -> Callable[..., Any]:
    def work(*args: Any, **options: Any) -> Any:
        raise error

    return work


@dataclass(frozen=True)
class Settings:
    """Where a run goes."""

    out: str = ""


def test_what_ends_a_run_is_in_its_log(bucket, tmp_path, quick, capsys):
    for place in (bucket, tmp_path / "run"):
        for error in (MemoryError(), RuntimeError("a bug")):

            def main(settings: Any, error: Exception = error, place: Path = place) -> None:
                with open_run(place, {"out": ""}, resume=True) as run:
                    run.stage("a.jsonl", lambda: [{"n": 1}])
                    raise error

            with suppress(SystemExit, RuntimeError):
                run_experiment(Settings, main, description="", args=["--out", str(place)])
        log = paths.read_bytes(place / "log.txt").decode()
        assert "error: the memory does not suffice" in log and "error: a bug" in log
        assert log.count("Traceback (most recent call last)") == 2 and log.count("in main") == 2
        assert f"(where it came from: {place / 'log.txt'})" in capsys.readouterr().err


# Logs


def test_logs_are_written_at_intervals_and_not_by_the_one_who_logs(bucket, monkeypatch):
    wrote: list[tuple[str, str]] = []
    write = appending.write_bytes

    def slow(file: Path, content: bytes) -> None:
        time.sleep(0.2)
        wrote.append((file.name, threading.current_thread().name))
        write(file, content)

    monkeypatch.setattr(appending, "write_bytes", slow)
    monkeypatch.setattr(appending, "EVERY", 0.5)
    logs = Appending()
    took, began = [], time.monotonic()
    for number in range(100):
        for name in ("log.txt", "metrics.jsonl"):
            started = time.monotonic()
            logs.add(bucket / name, f"line {number}\n")
            took.append(time.monotonic() - started)
        time.sleep(0.01)
    assert sorted(took)[-5] < 0.1 and 2 <= len(wrote) <= 2 * (1 + (time.monotonic() - began) / 0.5)
    assert threading.current_thread().name not in {thread for _, thread in wrote}
    logs.flush()
    for name in ("log.txt", "metrics.jsonl"):
        assert paths.read_bytes(bucket / name) == b"".join(b"line %d\n" % number for number in range(100))


def test_lines_that_the_bucket_did_not_take_are_written_by_the_next_writing(bucket, monkeypatch):
    monkeypatch.setattr(appending, "EVERY", 0.0)
    logs = Appending()
    with monkeypatch.context() as patch:
        logs.add(bucket / "log.txt", "first\n")
        logs.flush()
        _refused(patch)
        for _ in range(10):
            logs.add(bucket / "log.txt", "lost?\n")
            time.sleep(0.02)
        with pytest.raises(InputError, match="no permission"):
            logs.flush()
    logs.flush()
    assert paths.read_bytes(bucket / "log.txt") == b"first\n" + 10 * b"lost?\n"
