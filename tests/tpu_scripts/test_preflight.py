"""preflight: one process, two connected processes, hosts that differ, what fails, what hangs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small import ROOT, attempt, fails
from tpu_scripts import preflight

LINES = ("versions", "devices", "all-reduce", "path", "clock")


def start(folder: Path, *options: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(folder / "tpu_scripts/preflight.py"), "--size-mb", "1", *options], cwd=cwd, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def of_two(index: int) -> list[str]:
    return ["--hosts.count", "2", "--hosts.index", str(index)]


def coordinator() -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return ["--hosts.coordinator", f"127.0.0.1:{free.getsockname()[1]}"]


def outcome(printed: str) -> dict[str, str]:
    """What each check's line says."""
    return {words[0]: words[1] for words in map(str.split, printed.splitlines()) if words and words[0] in LINES}


def test_one_process_passes(tmp_path, capsys):
    attempt(preflight, ["--size-mb", "0.1", "--path", str(tmp_path), "--devices", "1"])
    printed = capsys.readouterr().out
    assert outcome(printed) == dict.fromkeys(LINES, "OK")
    assert "0.1 MB on each of 1 devices" in printed and "GB/s" in printed
    assert list(tmp_path.iterdir()) == []


def test_each_check_runs_on_after_one_that_failed(tmp_path, capsys):
    """A file stands where the folder should be, and the devices are not those expected."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        attempt(preflight, ["--size-mb", "0.1", "--path", str(tmp_path / "file"), "--devices", "3"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 1
    assert outcome(printed) == {name: "FAILED" if name in ("devices", "path") else "OK" for name in LINES}
    assert "  1 devices are here, 3 are expected\n" in printed
    assert "  host 0 cannot write: NotADirectoryError: " in printed


def test_two_processes_pass(tmp_path):
    options = [*coordinator(), "--path", str(tmp_path), "--devices", "2"]
    hosts = [start(ROOT, *options, *of_two(i)) for i in (0, 1)]
    (first, errors), (second, _) = [host.communicate(timeout=100) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], errors[-3000:]
    assert outcome(first) == dict.fromkeys(LINES, "OK") and outcome(second) == {}
    assert "1 MB on each of 2 devices" in first and "2 x cpu, hosts: 2" in first
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_differ_are_named(tmp_path):
    """Host 1 has an edited source, another libtpu and two devices; "share" is another folder there."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        (folder / "share").mkdir(parents=True)
    for name in ("fusion_jax", "experiments", "tpu_scripts"):
        shutil.copytree(ROOT / name, folders[1] / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert preflight.source_hash(folders[1]) == preflight.source_hash(ROOT)
    with open(folders[1] / "fusion_jax/errors.py", "a") as source:
        source.write("# edited on this host\n")
    package = tmp_path / "packages/libtpu-9.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: libtpu\nVersion: 9.9\n")
    options = [*coordinator(), "--path", "share", "--devices", "2"]
    two = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": f"{package.parent}{os.pathsep}{folders[1]}",
    }
    hosts = [
        start(ROOT, *options, *of_two(0), cwd=folders[0]),
        start(folders[1], *options, *of_two(1), cwd=folders[1], **two),
    ]
    (first, errors), _ = [host.communicate(timeout=100) for host in hosts]
    assert [host.returncode for host in hosts] == [1, 1], errors[-3000:]
    failing = ("versions", "devices", "path")
    assert outcome(first) == {name: "FAILED" if name in failing else "OK" for name in LINES}
    problems = [line.strip() for line in first.splitlines() if line.startswith("  ")]
    here, there = preflight.source_hash(ROOT), preflight.source_hash(folders[1])
    assert here != there and f"sources: {here} on host 0; {there} on host 1" in problems
    assert f"libtpu: {preflight.installed('libtpu')} on host 0; 9.9 on host 1" in problems
    assert "3 devices are here, 2 are expected" in problems and "devices: 1 on host 0; 2 on host 1" in problems
    for index in (0, 1):
        assert any(
            p.startswith(f"host {index} cannot read what host {1 - index} wrote: FileNotFoundError") for p in problems
        )
    assert not any(name in " ".join(problems) for name in ("python:", "jax:", "jaxlib:", "kind:"))
    assert [list((folder / "share").iterdir()) for folder in folders] == [[], []]


def test_a_host_that_waits_in_vain_gives_up_with_a_hint():
    """Host 0 never comes."""
    since = time.monotonic()
    host = start(ROOT, *coordinator(), *of_two(1), "--limit-s", "1")
    printed, _ = host.communicate(timeout=60)
    assert host.returncode == 1 and time.monotonic() - since < 20
    assert "connect     FAILED  no end after 1 s" in printed
    assert "Usual causes: a host that has not started" in printed


def test_a_check_that_hangs_on_one_host_ends_all(tmp_path):
    """For host 1 the shared folder is a pipe that nobody writes to, as a mount that does not answer; host 0 waits."""
    os.mkfifo(tmp_path / "pipe")
    body = "from tpu_scripts import preflight as p; p.epath.Path = lambda _: open(PIPE); p.run_program(p.Settings, p.main, description='')"
    options = [*coordinator(), "--limit-s", "3", "--path", str(tmp_path), "--size-mb", "1"]
    hosts = [
        start(ROOT, *options, *of_two(0)),
        subprocess.Popen(
            [sys.executable, "-c", body.replace("PIPE", repr(str(tmp_path / "pipe"))), *options, *of_two(1)], cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ),
    ]  # fmt: skip
    printed = [host.communicate(timeout=30)[0] for host in hosts]
    assert all(host.returncode != 0 for host in hosts)
    assert "path        FAILED  no end after 3 s" in "".join(printed)


def test_clocks_apart_and_wrong_sums_are_reported():
    s = preflight.Settings()
    assert preflight.judge_clock(s, [{"time": 100.0}, {"time": 101.5}]).problems == ()
    [problem] = preflight.judge_clock(s, [{"time": 107.25}, {"time": 100.0}]).problems
    assert problem == "the clock of host 0 is 7.2 s ahead of that of host 1"
    good = {"right": True, "seconds": 0.5, "bytes": 10**9, "devices": 8}
    verdict = preflight.judge_all_reduce(s, [good, good | {"right": False, "seconds": 2.0}])
    assert verdict.problems == ("the sum is wrong on host 1",) and verdict.detail.endswith("in 2e+03 ms: 0.5 GB/s")


@pytest.mark.parametrize("options, problem", [
    (["--limit-s", "0"], "field '--limit-s': 0.0 is out of range"), (["--devices", "0"], "field '--devices'"), (["--size-mb", "0"], "field '--size-mb'"),
    (["--hosts.count", "2", "--hosts.index", "0"], "2 hosts are not connected"), (["--hosts.count", "2"], "belong together"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(capsys, options, problem):
    fails(preflight, options, capsys, problem)
