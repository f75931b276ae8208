"""Stand-ins put first on PATH: programs that record their words, and a host's home to run remote commands in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.small import ROOT

SCRIPTS = ROOT / "tpu_scripts"
INTERPRETER = "if 'venv' in words: os.makedirs('.venv/bin'); os.symlink(sys.argv[0], '.venv/bin/python')"
TRICKY = (
    "two words", "it's", 'say "hi"', "$HOME", "`id`", "back\\slash", "new\nline", "", "*", "-x", "a  b ", "~", "é", "!", "&;|",
)  # fmt: skip


def program(folder: Path, name: str, body: str) -> Path:
    """An executable Python program; `words` are its own, in `folder`/NAME.jsonl each call is a line."""
    record = f"with open({str(folder / (name + '.jsonl'))!r}, 'a') as calls: calls.write(json.dumps(words) + '\\n')"
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\nwords = sys.argv[1:]\n{record}\n{body}\n")
    path.chmod(0o755)
    return path


def calls(folder: Path, name: str) -> list[list[str]]:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Bench:
    """A laptop with a recorded gcloud (`bin`) and one host of a slice (`home`)."""

    bin: Path
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
        return kept | {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home)} | more

    def tpu(self, *words: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPTS / "tpu.sh"), *words], env=self.environment(**environment), input=answer, text=True,
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def gcloud(self) -> list[list[str]]:
        return calls(self.bin, "gcloud")

    def remote(self, command: str) -> subprocess.CompletedProcess[str]:
        """What sshd does with a command: one string for the shell, in the user's home. gcloud cuts it at blanks, ssh joins
        the parts with blanks."""
        line = " ".join(command.split(" "))
        return subprocess.run(
            ["bash", "-c", line], cwd=self.home, env=self.environment(), text=True, capture_output=True, timeout=60,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def commands(self) -> list[str]:
        """The remote commands gcloud was given."""
        return [
            word.removeprefix("--command=") for call in self.gcloud() for word in call if word.startswith("--command=")
        ]

    def wait(self) -> str:
        """The end of the job on the host: its status."""
        done = self.remote("cd ~/fusion_jax && flock -w 30 .job/*/lock true && bash tpu_scripts/job.sh status")
        assert done.returncode == 0, done
        return done.stdout.partition(": ")[2].strip()

    def end(self) -> None:
        """Leave no job behind, also where a test failed."""
        for state in self.home.glob("fusion_jax/.job/*"):
            free = subprocess.run(["flock", "-n", str(state / "lock"), "true"], check=False).returncode == 0
            if not free:
                os.killpg(int((state / "pid").read_text()), signal.SIGKILL)

    def log(self) -> str:
        return next(self.home.glob("fusion_jax/.job/*/log.txt")).read_text()


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    made = Bench(folder / "bin", folder / "home")
    made.bin.mkdir(parents=True)
    shutil.copytree(SCRIPTS, made.home / "fusion_jax/tpu_scripts")
    program(made.bin, "gcloud", "print('READY' if 'describe' in words else '')")
    try:
        yield made
    finally:
        made.end()
