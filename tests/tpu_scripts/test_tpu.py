"""tpu.sh: what gcloud is given, word for word; what a host's shell makes of it; what is refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fusion_jax.hosts.signals import LOST, PREEMPTED
from tests.small import ROOT
from tests.tpu_scripts.stand_in import INTERPRETER, SCRIPTS, TRICKY, Bench, bench, calls, program

NAME = ["--name", "fusion", "--zone", "us-west4-a"]
ZONE = "--zone=us-west4-a"
JOB = "cd ~/fusion_jax && bash tpu_scripts/job.sh"


@pytest.fixture
def slice16(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def succeeds(slice16: Bench, *words: str, **environment: str) -> list[list[str]]:
    done = slice16.tpu(*words, **environment)
    assert done.returncode == 0, done.stderr
    return slice16.gcloud()


def tpu_vm(*words: str) -> list[str]:
    return ["compute", "tpus", "tpu-vm", *words]


def queued(*words: str) -> list[str]:
    return ["compute", "tpus", "queued-resources", *words]


@pytest.mark.parametrize("words, wanted", [
    (["create", "--type", "v5litepod-16"], [tpu_vm("create", "fusion", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", ZONE)]),
    (["create", "--type", "v6e-16", "--spot", "--project", "my project"], [tpu_vm("create", "fusion", "--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot", ZONE, "--project=my project")]),
    (["create", "--type", "v5p-64", "--queued", "--spot"], [queued("create", "fusion", "--node-id=fusion", "--accelerator-type=v5p-64", "--runtime-version=v2-alpha-tpuv5", "--spot", ZONE)]),
    (["create", "--type", "v4-16", "--slices", "2"], [queued("create", "fusion", "--node-count=2", "--node-prefix=fusion", "--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", ZONE)]),
    (["create", "--type", "v9-8", "--version", "some-image"], [tpu_vm("create", "fusion", "--accelerator-type=v9-8", "--version=some-image", ZONE)]),
    (["run", "--restarts", "3", "--", "python", "a.py"], [tpu_vm("ssh", "fusion", f"--command={JOB} start 3 -- python a.py", "--worker=all", ZONE)]),
    (["run", "--slices", "2", "--", "python", "a.py"], [queued("ssh", "fusion", f"--command={JOB} start 20 -- python a.py", "--node=all", "--worker=all", ZONE)]),
    (["run", "--queued", "--", "a"], [tpu_vm("ssh", "fusion", f"--command={JOB} start 20 -- a", "--worker=all", ZONE)]),
    (["preflight"], [tpu_vm("ssh", "fusion", "--command=cd ~/fusion_jax && .venv/bin/python tpu_scripts/preflight.py --hosts.coordinator auto", "--worker=all", ZONE)]),
    (["preflight", "--", "--path", "/my share"], [tpu_vm("ssh", "fusion", r"--command=cd ~/fusion_jax && .venv/bin/python tpu_scripts/preflight.py --hosts.coordinator auto --path /my\ share", "--worker=all", ZONE)]),
    (["logs"], [tpu_vm("ssh", "fusion", f"--command={JOB} logs", "--worker=0", ZONE)]),
    (["logs", "--worker", "all"], [tpu_vm("ssh", "fusion", f"--command={JOB} logs", "--worker=all", ZONE)]),
    (["logs", "--slices", "2"], [queued("ssh", "fusion", f"--command={JOB} logs", "--node=0", "--worker=0", ZONE)]),
    (["stop"], [tpu_vm("ssh", "fusion", f"--command={JOB} stop", "--worker=all", ZONE)]),
    (["status"], [tpu_vm("describe", "fusion", "--format=value(state)", ZONE), tpu_vm("ssh", "fusion", f"--command={JOB} status", "--worker=all", ZONE)]),
    (["fetch", "runs/a/", "here there"], [tpu_vm("scp", "fusion:fusion_jax/runs/a", "here there", "--recurse", "--worker=0", ZONE)]),
    (["fetch", "/mnt/runs/a"], [tpu_vm("scp", "fusion:/mnt/runs/a", ".", "--recurse", "--worker=0", ZONE)]),
    (["fetch", "runs/a", "--slices", "2"], [queued("scp", "fusion:fusion_jax/runs/a", ".", "--recurse", "--node=0", "--worker=0", ZONE)]),
    (["delete", "--yes"], [tpu_vm("delete", "fusion", "--quiet", ZONE)]),
    (["delete", "--yes", "--queued"], [queued("delete", "fusion", "--force", "--quiet", ZONE)]),
])  # fmt: skip
def test_what_gcloud_is_given(slice16, words, wanted):
    assert succeeds(slice16, words[0], *NAME, *words[1:]) == wanted


def test_settings_from_the_environment_and_options_before_them(slice16):
    environment = {
        "TPU_NAME": "fusion",
        "TPU_ZONE": "z",
        "TPU_PROJECT": "p",
        "TPU_TYPE": "v6e-8",
        "TPU_SPOT": "1",
        "TPU_QUEUED": "1",
    }
    given = succeeds(slice16, "create", "--zone", "us-west4-a", **environment)
    assert given == [
        queued(
            "create",
            "fusion",
            "--node-id=fusion",
            "--accelerator-type=v6e-8",
            "--runtime-version=v2-alpha-tpuv6e",
            "--spot",
            ZONE,
            "--project=p",
        )
    ]


def test_fetch_from_a_bucket(slice16):
    given = succeeds(slice16, "fetch", "runs/a", "--bucket", "gs://mine/fusion/", TPU_PROJECT="p")
    assert given == [["storage", "cp", "--recursive", "gs://mine/fusion/runs/a", ".", "--project=p"]]


def test_a_queued_request_that_waits_has_no_hosts_to_ask(slice16):
    program(slice16.bin, "gcloud", "print('WAITING_FOR_RESOURCES')")
    done = slice16.tpu("status", *NAME, "--queued")
    assert (done.returncode, done.stdout) == (0, "WAITING_FOR_RESOURCES\n")
    assert slice16.gcloud() == [queued("describe", "fusion", "--format=value(state.state)", ZONE)]


def test_words_reach_the_command_of_the_host_as_they_are(slice16):
    """The recorded remote command is run by a shell; the program it starts records what it is given."""
    program(slice16.bin, "python", "print('made', file=open('made here.txt', 'w'))")
    wanted = [
        "experiments/wrpo.py",
        "--preset",
        "llama3-8b",
        "--prompts",
        "my file.jsonl",
        "--text.x",
        "it''s",
        *TRICKY,
    ]
    succeeds(slice16, "run", *NAME, "--", "python", *wanted)
    [command] = slice16.commands()
    started = slice16.remote(command)
    assert started.returncode == 0 and started.stdout.endswith(": started\n"), started
    assert slice16.wait() == "ended with code 0"
    assert calls(slice16.bin, "python") == [wanted]
    assert (slice16.home / "fusion_jax/made here.txt").exists()


def test_words_reach_preflight_as_they_are(slice16):
    folder = slice16.home / "fusion_jax/.venv/bin"
    folder.mkdir(parents=True)
    program(folder, "python", "")
    succeeds(slice16, "preflight", *NAME, "--", *TRICKY)
    assert slice16.remote(slice16.commands()[0]).returncode == 0
    assert calls(folder, "python") == [["tpu_scripts/preflight.py", "--hosts.coordinator", "auto", *TRICKY]]


def test_setup_brings_the_last_commit_and_takes_away_what_was_deleted(slice16, tmp_path):
    """Twice, from a repository of its own: sources are replaced, runs and .venv stay."""
    repository, sources = tmp_path / "repository", slice16.home / "fusion_jax"
    program(slice16.bin, "gcloud", f"if 'scp' in words: import shutil; shutil.copy(words[4], {str(slice16.home)!r})")
    program(slice16.bin, "python3.11", INTERPRETER)
    (repository / "tpu_scripts").mkdir(parents=True)
    for file in (SCRIPTS / "tpu.sh", SCRIPTS / "venv.sh"):
        (repository / "tpu_scripts" / file.name).write_bytes(file.read_bytes())
        (repository / "tpu_scripts" / file.name).chmod(0o755)
    (repository / "requirements.txt").write_text("jax==0.10.2\n")
    (repository / "an old file.py").write_text("old")
    (sources / "runs").mkdir()

    def commit_and_set_up() -> str:
        git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
            subprocess.run([*git, *words], check=True)
        (repository / "draft.py").write_text("")
        script = str(repository / "tpu_scripts/tpu.sh")
        done = subprocess.run(
            [script, "setup", *NAME], env=slice16.environment(), capture_output=True, text=True, timeout=60, check=True
        )
        scp, ssh = slice16.gcloud()[-2:]
        assert scp == tpu_vm("scp", scp[4], "fusion:", "--worker=all", ZONE) and not Path(scp[4]).exists()
        assert ssh == tpu_vm("ssh", "fusion", f"--command={slice16.commands()[-1]}", "--worker=all", ZONE)
        arrived = slice16.remote(slice16.commands()[-1])
        assert arrived.returncode == 0, arrived.stderr
        return done.stderr

    assert "not committed are not copied" in commit_and_set_up()
    assert (sources / "an old file.py").exists() and not (sources / "draft.py").exists()
    (repository / "an old file.py").rename(repository / "new.py")
    (repository / "draft.py").unlink()
    commit_and_set_up()
    assert (sources / "new.py").exists() and not (sources / "an old file.py").exists()
    assert (sources / "runs").is_dir() and not (slice16.home / "fusion_jax.tar.gz").exists()
    assert calls(slice16.bin, "python3.11")[0] == ["-m", "venv", ".venv"]
    install = ["-m", "pip", "install", "-q", "-r", "requirements.txt", "-e", ".[gs]", "jax[tpu]"]
    assert calls(slice16.bin, "python3.11")[1:] == [install, install]


@pytest.mark.parametrize("words, problem, cure", [
    (["create", "--zone", "z", "--type", "v6e-8"], "--name is missing", "set TPU_NAME"),
    (["run", "--name", "n", "--", "a"], "--zone is missing", "set TPU_ZONE"),
    (["create", *NAME], "--type is missing", "set TPU_TYPE"),
    (["create", *NAME, "--type", "v9-8"], "no runtime version is known for the type 'v9-8'", "Give --version"),
    (["create", *NAME, "--type"], "--type has no value", "--help"),
    (["run", *NAME], "run has no command", "tpu.sh run --"),
    (["run", *NAME, "python", "--seed", "1"], "'--seed' is no option", "after --"),
    (["run", *NAME, "--restarts", "many", "--", "a"], "'many' is no count", "Give 0 or more"),
    (["logs", *NAME, "--worker", "1;id"], "'1;id' is no host", "Give a number or all"),
    (["stop", *NAME, "--slices", "0"], "'0' is no count", "Give 1 or more"),
    (["fetch", *NAME], "fetch takes FOLDER [DEST]", "runs/a"),
    (["fetch", *NAME, "runs/$(id)"], "'runs/$(id)' cannot be copied", "Use letters"),
    (["fetch", "runs/a", "--bucket", "mine"], "'mine' is no bucket", "gs://"),
    (["stop", *NAME, "now"], "stop takes no 'now'", "--help"),
    (["destroy", *NAME], "'destroy' is no command", "--help"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_called(slice16, words, problem, cure):
    done = slice16.tpu(*words)
    assert done.returncode == 2 and done.stdout == "" and slice16.gcloud() == []
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and problem in line and cure in line


@pytest.mark.parametrize("option", ["--name", "--zone", "--project", "--type", "--version", "--bucket", "--slices", "--restarts", "--worker"])
@pytest.mark.parametrize("value", ["-x", "--flags-file=/etc/passwd", "a\nb", "a;id", "$(id)", "ü", "a" * 5000, "08\x1b[2J"])
def test_no_value_of_an_option_reaches_gcloud_as_something_else(slice16, option, value):
    """Also where it comes from the environment; one line, whatever the value holds."""
    fitting = {"--name": "fusion", "--zone": "us-west4-a", "--type": "v6e-8"}
    if option in ("--project", "--version", "--type") and value == "a" * 5000:
        value = "-" + value
    words = [word for pair in (fitting | {option: value}).items() for word in pair]
    for done in (slice16.tpu("create", *words), slice16.tpu("create", "--dry-run", *words)):
        [line] = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == "" and slice16.gcloud() == []
        assert line.startswith(f"error: {option} '") and len(line) < 250 and "\x1b" not in line


@pytest.mark.parametrize("variable", ["NAME", "ZONE", "PROJECT", "TYPE", "VERSION", "BUCKET", "SLICES"])
def test_variables_are_held_to_the_same_forms(slice16, variable):
    given = {"TPU_NAME": "fusion", "TPU_ZONE": "us-west4-a", "TPU_TYPE": "v6e-8", f"TPU_{variable}": "-x"}
    done = slice16.tpu("create", **given)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"error: --{variable.lower()} '-x' is no ") and slice16.gcloud() == []


def test_a_switch_is_on_only_where_its_variable_says_so(slice16):
    plain = tpu_vm("create", "fusion", "--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e", ZONE)
    assert succeeds(slice16, "create", *NAME, "--type", "v6e-8", TPU_SPOT="0", TPU_QUEUED="0") == [plain]
    done = slice16.tpu("create", *NAME, "--type", "v6e-8", TPU_SPOT="false")
    assert done.returncode == 2 and "error: TPU_SPOT 'false' is neither 0 nor 1" in done.stderr


@pytest.mark.parametrize("words", [["--", "-x"], ["runs/a", "--", "-x"], ["runs/a", "other:there"], ["runs/a", "a\nb"], ["/"]])
def test_a_folder_to_fetch_is_no_option_and_no_other_host(slice16, words):
    for how in (NAME, ["--bucket", "gs://mine"]):
        done = slice16.tpu("fetch", *how, *words)
        [line] = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("error: ") and slice16.gcloud() == []
    succeeds(slice16, "fetch", *NAME, "runs/a", "./-x é")


def test_without_gcloud_the_cure_is_named(slice16, tmp_path):
    """PATH holds only what the script itself uses."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "env", "cat"):
        (bare / name).symlink_to(next(p for d in os.environ["PATH"].split(":") if (p := Path(d) / name).exists()))
    done = slice16.tpu("stop", *NAME, PATH=str(bare))
    assert done.returncode == 2 and "gcloud is not installed. Install the Google Cloud CLI" in done.stderr


def test_a_dry_run_prints_what_would_be_called_and_calls_nothing(slice16, tmp_path):
    for words in (
        ["create", "--type", "v6e-8"],
        ["setup"],
        ["status"],
        ["stop"],
        ["delete"],
        ["run", "--", "python", *TRICKY],
    ):
        done = slice16.tpu(words[0], *NAME, "--dry-run", *words[1:])
        assert done.returncode == 0 and "gcloud compute tpus tpu-vm" in done.stdout, done
    assert slice16.gcloud() == []
    printed = subprocess.run(["bash", "-c", done.stdout], env=slice16.environment(), check=True, capture_output=True)
    assert printed.returncode == 0
    succeeds(slice16, "run", *NAME, "--", "python", *TRICKY)
    once, again = slice16.gcloud()
    assert once == again


@pytest.mark.parametrize("answer, deleted", [("y\n", True), ("n\n", False), ("", False)])
def test_delete_asks(slice16, answer, deleted):
    done = slice16.tpu("delete", *NAME, answer=answer)
    assert "Delete 'fusion' in us-west4-a" in done.stderr
    assert done.returncode == (0 if deleted else 2) and bool(slice16.gcloud()) == deleted


def test_a_failure_of_gcloud_is_passed_on(slice16):
    program(slice16.bin, "gcloud", "sys.exit(7)")
    assert slice16.tpu("status", *NAME).returncode == 7
    assert len(slice16.gcloud()) == 1


def test_help_names_every_command_and_option(slice16):
    text = slice16.tpu("--help").stdout
    for word in (
        "create",
        "setup",
        "preflight",
        "run",
        "status",
        "logs",
        "stop",
        "fetch",
        "delete",
        "--spot",
        "TPU_ZONE",
    ):
        assert word in text


def test_the_scripts_are_clean():
    scripts = sorted(map(str, SCRIPTS.glob("*.sh")))
    assert len(scripts) == 4
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "shellcheck"),
            "--enable=quote-safe-variables,require-double-brackets",
            *scripts,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_manifest_restarts_a_preempted_run_and_nothing_else():
    """The pod policy ends the job with the reason that the JobSet treats as final, for all codes but these."""
    text = (SCRIPTS / "gke.yaml").read_text()
    assert "pip install -r requirements.txt -e '.[gs]' " in text  # runs on a bucket
    manifest = yaml.safe_load(text)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    assert manifest["spec"]["failurePolicy"] == {
        "maxRestarts": 20,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    [job] = manifest["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    disruption, final = spec["podFailurePolicy"]["rules"]
    assert disruption == {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (
        final["action"] == "FailJob"
        and final["onExitCodes"]["operator"] == "NotIn"
        and final["onExitCodes"]["values"] == [PREEMPTED, LOST, 128 + signal.SIGTERM]
    )
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    assert container["name"] == final["onExitCodes"]["containerName"]
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    rows, columns = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
    assert (
        spec["parallelism"]
        == spec["completions"]
        == rows * columns // container["resources"]["limits"]["google.com/tpu"]
    )
    assert [variable["name"] for variable in container["env"]] == ["RESTART_ATTEMPT"]
    assert container["command"][:4] == ["bash", "tpu_scripts/job.sh", "attempt", "$(RESTART_ATTEMPT)"]
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    assert (ROOT / container["args"][1]).exists()
    assert spec["completions"] > 1 and "--hosts.coordinator=auto" in container["args"]


def test_the_page_connects_the_hosts_of_a_slice():
    """tpu.sh's example and xpk's line; what comes after is of one host."""
    page = (SCRIPTS / "README.md").read_text().partition("## GPU")[0].replace("\\\n", "")
    commands = re.findall(r"python experiments/wrpo\.py .*", page)
    assert len(commands) == 2
    assert all("--hosts.coordinator auto" in command and "--out" in command for command in commands)
