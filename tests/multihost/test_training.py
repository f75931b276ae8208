"""Training by two and four processes on one machine is the training of one: metrics, weights, preemption, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import dpo
from fusion_jax.hosts.signals import LOST, PREEMPTED
from fusion_jax.jsonl import read_jsonl
from tests.multihost.test_teacher_store import free_address
from tests.programs import Program
from tests.small import ROOT, attempt, even_pairs, fails, script, small_folder, virtual_devices, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

STEPS = 18

# What a process opens to write, makes, renames or removes through Python, one path a line.
RECORDER = """
import os, sys
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.truncate": 0, "os.symlink": 1}
out = os.open(os.environ["WRITES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, args):
    if event in CHANGES or event == "open" and args[2] & WRITE:
        os.write(out, f"{args[CHANGES.get(event, 0)]}\\n".encode())
sys.addaudithook(hook)
"""


def prepared(path: Path) -> Path:
    """A folder with the model, and pairs of one length, so that little is compiled."""
    small_folder(path / "model", num_key_value_heads=2)
    write(path / "pairs.jsonl", even_pairs(56))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`prepared`, and the run of one process."""
    path = prepared(tmp_path_factory.mktemp("training"))
    attempt(dpo, arguments(path, "one"))
    assert read_jsonl(path / "one/metrics.jsonl")[-1]["step"] == STEPS - 1
    return path


def report(run: Path) -> list[str]:
    """The report's sections, without the one that says what was run, where and when."""
    sections = (run / "report.md").read_text().split("\n## ")
    assert any(section.startswith("What was run") for section in sections)
    return [section for section in sections if not section.startswith("What was run")]


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    return [
        "--model", str(folder / "model"), "--data", str(folder / "pairs.jsonl"), "--out", str(folder / out),
        "--train.checkpoint-every", "7", "--train.batch-size", "8", "--train.micro-batches", "2",
        "--train.epochs", "3", "--train.eval-every", "10", "--train.remat", "none", *more,
    ]  # fmt: skip


def start(folder: Path, out: str, count: int, *more: str, virtual: int = 1) -> list[Program]:
    """The run as each of `count` hosts starts it; what they write through Python is in OUT.writes.INDEX."""
    address = free_address()
    hosts = []
    for index in range(count):
        place = ["--hosts.coordinator", address, "--hosts.count", str(count), "--hosts.index", str(index)]
        env = os.environ | virtual_devices(virtual) | {
            "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "WRITES": str(folder / f"{out}.writes.{index}"),
        }  # fmt: skip
        options = arguments(folder, out, *(place if count > 1 else []), *more)
        hosts.append(Program(script("dpo", *options), env, first=RECORDER))
    return hosts


def ended(hosts: Sequence[Program], code: int) -> list[str]:
    """What each printed; all ended with the code."""
    outputs = [host.communicate(timeout=180) for host in hosts]
    assert [host.returncode for host in hosts] == [code] * len(hosts), [errors[-3000:] for _, errors in outputs]
    return [printed for printed, _ in outputs]


def reached(folder: Path, out: str, lines: int, hosts: Sequence[Program]) -> None:
    """Wait until the run has logged so many lines."""
    file = folder / out / "metrics.jsonl"
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert all(host.poll() is None for host in hosts), [host.communicate()[1][-3000:] for host in hosts]
        time.sleep(0.005)


def weights(folder: Path, out: str) -> dict[str, np.ndarray]:
    return load_file(folder / out / "model/model.safetensors")


def same_as_one(folder: Path, out: str) -> None:
    """Sums are taken in another order: float32 rounding. Rewards are differences of log-probs, which lose digits: they
    agree to 1e-6, with log-probs of 1e2."""
    one, other = (read_jsonl(folder / name / "metrics.jsonl") for name in ("one", out))
    assert [set(line) for line in one] == [set(line) for line in other]
    for ours, wanted in zip(other, one, strict=True):
        for name, value in wanted.items():
            if "accuracies" in name and wanted["step"] < 2:
                continue  # the policy is still the reference: rounding alone decides who wins
            floor = 1e-6 if "rewards/" in name else 0.0
            np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=floor, err_msg=f"{wanted['step']} {name}")
    expected, actual = weights(folder, "one"), weights(folder, out)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=name)
    assert report(folder / out) == report(folder / "one")


@pytest.mark.slow
def test_two_hosts_train_as_one_and_the_first_one_writes(folder):
    """Orbax alone writes on both: each host what its devices hold of the state."""
    first, second = ended(start(folder, "two", 2), 0)
    assert f"steps 1 to {STEPS}" in first and "model:" in first
    assert not [line for line in second.splitlines() if "Gloo" not in line]
    same_as_one(folder, "two")
    run = f"{folder / 'two'}/"
    wrote = [
        {line for line in (folder / f"two.writes.{i}").read_text().splitlines() if line.startswith(run)} for i in (0, 1)
    ]
    for name in ("metrics.jsonl", "log.txt", "reference/reference.npy", ".model"):
        assert any(line.startswith(run + name) for line in wrote[0]), (name, sorted(wrote[0]))
    assert {line for line in wrote[1] if not line.startswith(f"{run}checkpoints")} == set()


@pytest.mark.slow
def test_preempted_hosts_save_and_go_on_as_if_nothing_had_been(folder):
    """One is told, both end with the code that asks for a restart; on the same mesh the end is the same bit for bit."""
    hosts = start(folder, "preempted", 2)
    reached(folder, "preempted", 6, hosts)
    hosts[1].send_signal(signal.SIGTERM)
    first, _ = ended(hosts, PREEMPTED)
    last = read_jsonl(folder / "preempted/metrics.jsonl")[-1]["step"]
    assert f"saved after step {last + 1}" in first and 5 <= last < STEPS - 1
    assert [p.name for p in (folder / "preempted/checkpoints").iterdir()] == [str(last + 1)]
    first, _ = ended(start(folder, "preempted", 2, "--resume", "True"), 0)
    assert f"steps {last + 2} to {STEPS}" in first
    assert read_jsonl(folder / "preempted/metrics.jsonl") == read_jsonl(folder / "two/metrics.jsonl")
    expected, actual = weights(folder, "two"), weights(folder, "preempted")
    assert all(expected[name].tobytes() == actual[name].tobytes() for name in expected)


@pytest.mark.slow
def test_a_lost_host_stops_the_others_and_any_number_of_hosts_goes_on(folder):
    """Four hosts, of which one is killed: the run ends on two, on one device, and on a mesh of eight."""
    hosts = start(folder, "lost", 4)
    reached(folder, "lost", 9, hosts)
    hosts[2].send_signal(signal.SIGKILL)
    since = time.monotonic()
    outputs = [host.communicate(timeout=90) for host in hosts]
    assert time.monotonic() - since < 60
    for index in (0, 1, 3):
        assert hosts[index].returncode in (LOST, -signal.SIGABRT), outputs[index]
        assert "lost another host" in outputs[index][1] or "another task died" in outputs[index][1], outputs[index]
    for out in ("lost_on_one", "lost_on_eight"):
        shutil.copytree(folder / "lost", folder / out)
    first, _ = ended(start(folder, "lost", 2, "--resume", "True"), 0)
    assert any(f"steps {saved + 1} to {STEPS}" in first for saved in range(7, STEPS, 7))
    mesh = ["--train.mesh-tensor", "2", "--resume", "True"]
    on_eight = start(folder, "lost_on_eight", 1, *mesh, virtual=8)
    attempt(dpo, arguments(folder, "lost_on_one", "--resume", "True"))
    ended(on_eight, 0)
    assert json.loads((folder / "lost_on_eight/config.json").read_text())["train"]["mesh_tensor"] == 2
    for out in ("lost", "lost_on_one", "lost_on_eight"):
        same_as_one(folder, out)


def test_one_process_is_preempted_too(folder):
    (host,) = start(folder, "alone", 1)
    reached(folder, "alone", 3, [host])
    host.send_signal(signal.SIGTERM)
    ended([host], PREEMPTED)
    attempt(dpo, arguments(folder, "alone", "--resume", "True"))
    assert read_jsonl(folder / "alone/metrics.jsonl") == read_jsonl(folder / "one/metrics.jsonl")
    expected, actual = weights(folder, "one"), weights(folder, "alone")
    assert all(expected[name].tobytes() == actual[name].tobytes() for name in expected)


def test_hosts_that_do_not_fit_are_refused(tmp_path, capsys):
    """Without a coordinator there is no mesh; a bucket is no folder."""
    prepared(tmp_path)
    fails(dpo, arguments(tmp_path, "refused", "--hosts.count", "2", "--hosts.index", "1"), capsys, "coordinator")
    fails(dpo, arguments(tmp_path, "refused", "--out", "s3://bucket/run"), capsys, "is no place for a run", "gs://BUCKET")
    assert not (tmp_path / "refused").exists()
