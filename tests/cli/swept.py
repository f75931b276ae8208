"""A small experiment for the tests of sweeps: says what it was given, and fails, dies or waits when a file says so."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusion_jax.errors import InputError
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.seeds import over_seeds
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment


@dataclass(frozen=True)
class Step:
    rate: float = 0.1


@dataclass(frozen=True)
class Settings:
    out: str = "runs/swept"
    resume: bool = False
    seed: int = 42
    step: Step = Step()
    kind: Literal["plain", "squared"] = "plain"
    parts: tuple[str, ...] = ()
    orders: str = ""

    def __post_init__(self) -> None:
        bounded(self.step, "rate", least=0)


def main(s: Settings) -> None:
    run = open_run(s.out, s, resume=s.resume)
    run.file("pid").write_text(str(os.getpid()))
    seen = {k: v for k, v in os.environ.items() if "VISIBLE" in k or k.startswith(("TPU_", "XLA_PYTHON"))}
    run.file("seen.json").write_text(json.dumps({**seen, "resume": s.resume}))
    order = Path(s.orders) / f"{s.step.rate}-{s.seed}" if s.orders else None
    while order and order.exists():
        match order.read_text():
            case "fail":
                raise InputError("the well is | dry", field="orders", cure="Wait for rain")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
    value = s.step.rate ** (2 if s.kind == "squared" else 1) * s.seed

    over_seeds(run, "Swept", None, s.seed, 1, lambda seed, _: {"Z": {"value": value}, "A": {"value": -1.0}})
    run.finish()


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
