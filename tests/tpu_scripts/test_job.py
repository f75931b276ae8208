"""job.sh: a job outlives its connection, starts again when it was preempted, is stopped gently; gpu_setup.sh."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multihost.test_teacher_store import free_address
from tests.tpu_scripts.stand_in import INTERPRETER, SCRIPTS, TRICKY, Bench, bench, calls, program

FIRST_ENDS = (
    "n = len(open(sys.argv[0] + '.jsonl').readlines()); print('call', n, flush=True); sys.exit((75, 134, 0)[n - 1])"
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def job(host: Bench, words: str) -> subprocess.CompletedProcess[str]:
    return host.remote(f"cd ~/fusion_jax && bash tpu_scripts/job.sh {words}")


def started(host: Bench, *words: str, restarts: int = 5) -> list[list[str]]:
    """The calls of `train` when the job has ended; started through tpu.sh."""
    done = host.tpu("run", "--name", "n", "--zone", "z", "--restarts", str(restarts), "--", "train", *words)
    assert done.returncode == 0, done.stderr
    assert host.remote(host.commands()[-1]).returncode == 0
    return calls(host.bin, "train")


@pytest.mark.parametrize("given, again", [
    (["--out", "a", *TRICKY], ["--out", "a", *TRICKY, "--resume", "True"]),
    (["--resume", "True", "--out", "a"], ["--resume", "True", "--out", "a"]),
    (["--resume=True"], ["--resume=True"]),
    (["--resume", "auto", "--out", "a"], ["--resume", "auto", "--out", "a"]),
    (["--resume", "False"], ["--resume", "False", "--resume", "True"]),
    (["--note", "--resume", "--name", "True"], ["--note", "--resume", "--name", "True", "--resume", "True"]),
])  # fmt: skip
def test_a_preempted_command_and_one_that_lost_a_host_start_again_with_resume(host, given, again):
    program(host.bin, "train", FIRST_ENDS)
    started(host, *given)
    assert host.wait() == "ended with code 0"
    assert calls(host.bin, "train") == [given, again, again]
    for i, code in enumerate((75, 134, 0)):
        assert f"attempt {i} ended with code {code}" in host.log() and f"call {i + 1}\n" in host.log()


@pytest.mark.parametrize("code", [1, 2, 137])
def test_any_other_code_ends_the_job(host, code):
    program(host.bin, "train", f"sys.exit({code})")
    started(host)
    assert host.wait() == f"ended with code {code}"
    assert calls(host.bin, "train") == [[]]


@pytest.mark.parametrize("code", [75, 134, 143])
def test_restarts_are_counted(host, code):
    program(host.bin, "train", f"sys.exit({code})")
    started(host, restarts=2)
    assert host.wait() == f"ended with code {code}"
    assert len(calls(host.bin, "train")) == 3


MESH = """
import signal
from fusion_jax.hosts import agree, join, signals
call = len(open(sys.argv[0] + '.jsonl').readlines())
signals.GRACE_SECONDS = 1
def sigterm(): {told} and os.kill(os.getpid(), signal.SIGTERM)
with signals.ending_together():
    join.connect(join.HostSettings({address!r}, 2, {index}))
    with signals.preemption() as told_to_stop:
        assert not bool(told_to_stop())
        if call == 1: sigterm()
    print('a stage went well', flush=True)
    if call == 2: sigterm()
    agree.barrier('the next')
"""


def test_a_mesh_comes_together_again(tmp_path):
    """One of two hosts gets a SIGTERM: first when a training loop has asked for the last time, which ends both with the
    code of the told; then between stages, which ends the other one as lost."""
    address = free_address()
    with bench(tmp_path / "0") as first, bench(tmp_path / "1") as second:
        for index, host in enumerate((first, second)):
            program(host.bin, "train", MESH.format(told=index == 1, address=address, index=index))
            assert job(host, "start 5 -- train").returncode == 0
        assert [host.wait() for host in (first, second)] == ["ended with code 0"] * 2
        for host, codes in ((first, (75, 134, 0)), (second, (75, 75, 0))):
            log = host.log()
            assert [int(code) for code in re.findall(r"attempt \d ended with code (\d+)", log)] == list(codes), log
            assert log.count("a stage went well") == 2


def test_a_command_that_is_not_there_is_recorded(host):
    assert job(host, "start 5 -- nothing-of-this-name").returncode == 0
    assert host.wait() == "ended with code 127"


def test_the_venv_comes_first(host):
    folder = host.home / "fusion_jax/.venv/bin"
    folder.mkdir(parents=True)
    program(folder, "python", "")
    assert job(host, "start 0 -- python a.py").returncode == 0
    assert host.wait() == "ended with code 0" and calls(folder, "python") == [["a.py"]]


SAVES = """
import signal, time
def save(*_):
    print('saved', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(60)
"""


def running(host: Bench) -> None:
    """A job that saves its state at SIGTERM, when it has come so far."""
    program(host.bin, "train", SAVES)
    started(host)
    limit = time.monotonic() + 30
    while "ready" not in host.log():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_stop_lets_the_command_save_and_does_not_start_it_again(host):
    running(host)
    assert job(host, "status").stdout.endswith(": running\n")
    done = job(host, "stop")
    assert done.stdout.endswith(": ended with code 75\n"), done
    assert host.log().count("saved") == 1 and len(calls(host.bin, "train")) == 1
    assert job(host, "stop").stdout == done.stdout


def test_one_job_at_a_time_and_a_new_one_after_its_end(host):
    running(host)
    second = job(host, "start 0 -- train again")
    assert second.returncode == 2 and "a job is running already" in second.stderr
    job(host, "stop")
    assert calls(host.bin, "train") == [[]]
    program(host.bin, "train", "")
    assert job(host, "start 0 -- train again").returncode == 0
    assert host.wait() == "ended with code 0"
    assert calls(host.bin, "train") == [[], ["again"]] and "saved" in host.log()


def test_a_killed_loop_is_told_from_an_end(host):
    """Its command still holds the devices, so the host is not free until that ends, too."""
    running(host)
    [pid] = [int(p.read_text()) for p in host.home.glob("fusion_jax/.job/*/pid")]
    os.kill(pid, signal.SIGKILL)
    limit = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert job(host, "status").stdout.endswith(": running\n")
    lost = job(host, "stop")
    assert lost.returncode == 2 and f"kill -KILL -- -{pid}" in lost.stderr
    os.killpg(pid, signal.SIGKILL)
    assert host.wait() == "killed before its end"


def test_logs_follow_until_the_end_behind_the_hosts_name(host):
    program(host.bin, "train", "import time; print('first', flush=True); time.sleep(1.5); print('last')")
    started(host)
    lines = job(host, "logs").stdout.splitlines()
    name = host.remote("uname -n").stdout.strip()
    assert all(line.startswith(f"{name}: ") for line in lines)
    assert {f"{name}: first", f"{name}: last"} <= set(lines) and lines[-1] == f"{name}: ended with code 0"


def test_without_a_job(host):
    assert job(host, "status").stdout.endswith(": no job yet\n")
    assert job(host, "stop").stdout.endswith(": no job yet\n")
    done = job(host, "logs")
    assert done.returncode == 2 and "Start one: tpu.sh run" in done.stderr
    assert job(host, "restart").returncode == 2


@pytest.mark.parametrize("words, problem", [
    ("start -- train", "'--' is no count"), ("start -1 -- train", "'-1' is no count"), ("start 08 -- train", "'08' is no count"),
    ("start 5 train", "there is no command"), ("start 5 --", "there is no command"), ("attempt 'a[0]' -- train", "'a[0]' is no count"),
])  # fmt: skip
def test_a_count_or_a_command_that_is_none_starts_nothing(host, words, problem):
    program(host.bin, "train", "")
    done = job(host, words)
    assert done.returncode == 2 and problem in done.stderr and calls(host.bin, "train") == []
    assert len(done.stderr.splitlines()) == 1 and not (host.home / "fusion_jax/.job").exists()


def test_a_command_that_looks_like_an_option_of_exec_is_a_command(host):
    done = job(host, "attempt 0 -- -a train")
    assert done.returncode == 127 and "-a" in done.stderr and "invalid option" not in done.stderr


@pytest.mark.parametrize("content", ["-1", "0", "", "1 2", "x"])
def test_a_damaged_process_id_is_not_killed(host, content):
    running(host)
    [file] = host.home.glob("fusion_jax/.job/*/pid")
    real = file.read_text()
    file.write_text(content)
    done = job(host, "stop")
    file.write_text(real)
    assert done.returncode == 2 and "holds no process id" in done.stderr
    assert job(host, "stop").stdout.endswith(": ended with code 75\n")


def test_attempt_becomes_the_command_as_the_manifest_needs(host):
    program(host.bin, "train", "sys.exit(75)")
    first, later = job(host, "attempt 0 -- train a"), job(host, "attempt 4 -- train a")
    assert first.returncode == later.returncode == 75
    assert calls(host.bin, "train") == [["a"], ["a", "--resume", "True"]]


@pytest.mark.parametrize("given", [None, "gs://b/c", ""])
def test_programs_are_kept_for_the_next_start(host, given):
    """In the job's own folder, which a new job empties, or where it is said; nowhere where that is nothing."""
    program(host.bin, "train", "import os; print('in', os.environ['JAX_COMPILATION_CACHE_DIR'], flush=True)")
    own = host.home / f"fusion_jax/.job/{os.uname().nodename}/compiled"
    own.mkdir(parents=True)
    there = "-u JAX_COMPILATION_CACHE_DIR" if given is None else f"JAX_COMPILATION_CACHE_DIR={given}"
    assert host.remote(f"cd ~/fusion_jax && env {there} bash tpu_scripts/job.sh start 0 -- train").returncode == 0
    assert host.wait() == "ended with code 0" and not own.exists()
    assert f"in {own if given is None else given}\n" in host.log()


@pytest.fixture
def machine(tmp_path: Path) -> Bench:
    """A machine with the sources and a Python that only records what it is asked."""
    made = Bench(tmp_path / "bin", tmp_path)
    made.bin.mkdir()
    shutil.copytree(SCRIPTS, tmp_path / "tpu_scripts")
    (tmp_path / "requirements.txt").write_text("jax==0.10.2\n")
    program(made.bin, "python3.11", INTERPRETER)
    return made


@pytest.mark.parametrize("driver, option, build", [
    ("580.65.06\n580.65.06", "", "cuda13"), ("590.1", "", "cuda13"), ("570.124.04", "", "cuda12"), ("525.60.13", "", "cuda12"), ("580.65.06", "cuda12", "cuda12"),
])  # fmt: skip
def test_the_driver_decides_the_cuda_build(machine, driver, option, build):
    program(machine.bin, "nvidia-smi", f"print({driver!r})")
    done = machine.remote(f"tpu_scripts/gpu_setup.sh {option}")
    assert done.returncode == 0, done.stderr
    environment, install, check = calls(machine.bin, "python3.11")
    assert environment == ["-m", "venv", ".venv"]
    assert install == ["-m", "pip", "install", "-q", "-r", "requirements.txt", "-e", ".[gs]", f"jax[{build}]"]
    assert check[0] == "-c" and 'jax.devices("gpu")' in check[1]


@pytest.mark.parametrize("body, option, problem", [
    ("print('470.1')", "", "driver 470.1 is too old for cuda12. Install driver 525 or newer."),
    ("print('570.1')", "cuda13", "driver 570.1 is too old for cuda13. Install driver 580 or newer."),
    ("print('580.1')", "cuda11", "'cuda11' is no CUDA build. Give cuda12 or cuda13."),
    ("print('no devices'); sys.exit(9)", "", "nvidia-smi: no devices. Repair the driver."),
    ("print('N/A')", "", "names no driver version ('N/A')"),
])  # fmt: skip
def test_a_driver_that_does_not_fit_is_refused_before_anything_is_installed(machine, body, option, problem):
    program(machine.bin, "nvidia-smi", body)
    done = machine.remote(f"tpu_scripts/gpu_setup.sh {option}")
    assert done.returncode == 2 and problem in done.stderr and calls(machine.bin, "python3.11") == []


def test_a_gpu_that_jax_does_not_see_is_an_error(machine):
    program(machine.bin, "nvidia-smi", "print('580.1')")
    with open(machine.bin / "python3.11", "a") as python:
        python.write("sys.exit('-c' in words)\n")
    done = machine.remote("tpu_scripts/gpu_setup.sh")
    assert done.returncode == 2 and "jax does not see the GPU (driver 580.1, cuda13)" in done.stderr


@pytest.mark.parametrize("name", ["python3.12", "python3.13", "python3"])
def test_any_python_from_311_on_makes_the_environment(machine, name):
    """The stand-in is the only Python on PATH; as `python3` it is asked for its version."""
    (machine.bin / "python3.11").unlink()
    program(machine.bin, name, INTERPRETER)
    done = venv(machine)
    assert done.returncode == 0, done.stderr
    *asked, environment, install = calls(machine.bin, name)
    assert [words[0] for words in asked] == (["-c"] if name == "python3" else [])
    assert environment == ["-m", "venv", ".venv"] and install[:3] == ["-m", "pip", "install"]


def venv(machine):
    """venv.sh where PATH holds only the stand-ins and what the script itself uses."""
    for name in ("bash", "dirname"):
        (machine.bin / name).symlink_to(shutil.which(name) or "")
    return subprocess.run(
        ["bash", "tpu_scripts/venv.sh", "tpu"], cwd=machine.home, env={"PATH": str(machine.bin)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_image_with_an_older_python_gets_one_from_uv(machine):
    """As `python3` the stand-in says that it is older, and answers pip and uv."""
    (machine.bin / "python3.11").unlink()
    program(machine.bin, "python3", f"{INTERPRETER}\nsys.exit('-c' in words)")
    done = venv(machine)
    assert done.returncode == 0, done.stderr
    asked, uv, environment, install = calls(machine.bin, "python3")
    assert asked[0] == "-c"
    assert uv[:5] == ["-m", "pip", "install", "-q", "--user"] and uv[5].startswith("uv==")
    assert environment == ["-m", "uv", "venv", "-q", "--python", "3.11", "--seed", ".venv"]
    assert install[-3:] == ["-e", ".[gs]", "jax[tpu]"]


def test_an_unknown_build_of_jax_is_refused(machine):
    done = machine.remote("tpu_scripts/venv.sh rocm")
    assert done.returncode == 2 and "'rocm' is no build of jax. Give tpu, cuda12 or cuda13." in done.stderr
