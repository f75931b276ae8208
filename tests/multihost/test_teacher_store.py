"""A teacher store written by two processes on one machine is the store of one process, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import cache_teacher
from fusion_jax.data.documents import TeacherRow
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import Host, HostSettings, join
from fusion_jax.json_files import read_json
from fusion_jax.jsonl import read_jsonl
from fusion_jax.teachers.store import StoreIdentity, TeacherStore
from tests.programs import Program
from tests.small import attempt, fails, script, small_folder, virtual_devices, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

TEXTS, PART = 24, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model, the texts, which get longer so that every part compiles anew, and the store of one process."""
    path = tmp_path_factory.mktemp("hosts")
    small_folder(path / "model", num_key_value_heads=2)
    write(path / "texts.jsonl", [{"text": f"{i} " + "Reverse a b. " * (1 + i // PART)} for i in range(TEXTS)])
    attempt(cache_teacher, arguments(path, "one"))
    assert len(read_jsonl(path / "texts.jsonl")) == TEXTS == len(store(path / "one"))
    return path


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    return [
        "--model", str(folder / "model"), "--texts", str(folder / "texts.jsonl"), "--out", str(folder / out),
        "--k", "3", "--batch-size", "4", "--part-size", str(PART), "--verify", "4", *more,
    ]  # fmt: skip


def of_two(index: int, *more: str) -> list[str]:
    return ["--hosts.count", "2", "--hosts.index", str(index), *more]


def start(options: list[str], count: int = 1) -> Program:
    flags = virtual_devices(count) | {"JAX_PLATFORMS": "cpu"}
    return Program(script("cache_teacher", *options), os.environ | flags)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def finished(*hosts: Program) -> list[str]:
    """What each printed; all ended well."""
    outputs = [host.communicate(timeout=120) for host in hosts]
    for host, (_, errors) in zip(hosts, outputs, strict=True):
        assert host.returncode == 0, errors[-3000:]
    return [printed for printed, _ in outputs]


def store(path: Path) -> TeacherStore:
    return TeacherStore(path, StoreIdentity(**read_json(path / "store.json")))


def parts(path: Path) -> list[int]:
    return sorted(int(p.name[5:10]) for p in path.glob("part-*.array_record"))


def copy(path: Path, numbers: list[int]) -> None:
    """The store of one process, cut to these parts."""
    path.mkdir()
    for name in ["store.json", *(f"part-{i:05d}.array_record" for i in numbers)]:
        shutil.copy(path.parent / "one" / name, path)


def same(folder: Path, out: str) -> None:
    """The store holds what that of one process holds, bit for bit."""
    assert read_json(folder / out / "store.json") == read_json(folder / "one/store.json")
    for ours, one in zip(store(folder / out), store(folder / "one"), strict=True):
        for name in TeacherRow._fields:
            assert getattr(ours, name).tobytes() == getattr(one, name).tobytes(), name


def test_two_hosts_write_the_store_of_one(folder):
    """Connected, so that each sees the devices of both and takes its own."""
    options = ["--hosts.coordinator", free_address()]
    first, second = finished(*(start(arguments(folder, "two", *of_two(i, *options))) for i in (0, 1)))
    assert "bits_per_byte" in first and "bits_per_byte" not in second
    same(folder, "two")


def test_a_killed_host_loses_its_own_parts_and_one_process_completes_them(folder, capsys):
    """This process is the first host: it writes its own parts, waits, says who is missing; then it is alone."""
    copy(folder / "killed", [])
    other = start(arguments(folder, "killed", *of_two(1)))
    while other.poll() is None and 1 not in parts(folder / "killed"):
        time.sleep(0.001)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert other.returncode == -signal.SIGKILL
    fails(
        cache_teacher, arguments(folder, "killed", *of_two(0, "--hosts.patience", "1")), capsys,
        "nothing came from host 1 for 1 s", "Run the same command again, on any number of hosts",
    )  # fmt: skip
    there = parts(folder / "killed")
    assert {0, 1, 2, 4} <= set(there) and 5 not in there
    kept = {i: (folder / f"killed/part-{i:05d}.array_record").stat().st_mtime_ns for i in there}
    attempt(cache_teacher, arguments(folder, "killed"))
    same(folder, "killed")
    assert kept == {i: (folder / f"killed/part-{i:05d}.array_record").stat().st_mtime_ns for i in there}


def test_a_host_whose_first_host_does_not_come_says_so(folder, capsys):
    options = arguments(folder, "alone", *of_two(1, "--hosts.patience", "0.2"))
    fails(cache_teacher, options, capsys, "store.json: nothing came from host 0")
    assert not (folder / "alone").exists()


def test_a_mesh_over_two_hosts(folder):
    """The devices of both hosts hold the teacher together and complete a store. Sums are taken in another order, so
    rows agree to float32 rounding, and to one step of float16 where that is stored."""
    copy(folder / "global", [1, 2, 3, 4])
    options = ["--mesh", "global", "--hosts.coordinator", free_address()]
    first, second = finished(*(start(arguments(folder, "global", *of_two(i, *options)), count=2) for i in (0, 1)))
    assert "bits_per_byte" in first and "bits_per_byte" not in second
    assert read_json(folder / "global/store.json") == read_json(folder / "one/store.json")
    for ours, one in zip(store(folder / "global"), store(folder / "one"), strict=True):
        np.testing.assert_array_equal(ours.ids, one.ids)
        np.testing.assert_array_equal(ours.topk_ids, one.topk_ids)
        np.testing.assert_allclose(ours.logsumexp, one.logsumexp, rtol=1e-6)
        np.testing.assert_allclose(ours.tail, one.tail, rtol=1e-6)
        np.testing.assert_allclose(ours.metric, one.metric, rtol=1e-6)
        steps = np.spacing(one.topk_logprobs).astype(np.float32)
        assert (np.abs(ours.topk_logprobs.astype(np.float32) - one.topk_logprobs) <= np.abs(steps)).all()


@pytest.mark.parametrize("options, problem", [
    (["--hosts.count", "2"], "belong together"), (["--hosts.count", "2", "--hosts.index", "2"], "2 is no host of 2"),
    (["--hosts.coordinator", "127.0.0.1:1"], "belong together"), (["--hosts.patience", "0"], "out of range"),
    (["--mesh", "global"], "'--hosts.coordinator': is missing"),
    # A process whose devices are in use already cannot connect any more.
    (["--hosts.coordinator", "127.0.0.1:1", "--hosts.count", "2", "--hosts.index", "1"], "cannot connect"),
])  # fmt: skip
def test_hosts_that_do_not_fit_are_refused(folder, capsys, options, problem):
    fails(cache_teacher, arguments(folder, "refused", *options), capsys, problem)
    assert not (folder / "refused").exists()


def test_a_place_from_the_environment(monkeypatch):
    assert join(HostSettings()) == Host(0, 1)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    assert join(HostSettings()) == Host(2, 3) and join(HostSettings(count=2, index=0)) == Host(0, 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(InputError, match=r"JAX_PROCESS_ID.*'two' is no number"):
        join(HostSettings())
