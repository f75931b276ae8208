"""Programs that show metrics while a run trains: TensorBoard and Weights & Biases, where they are installed.

They show what metrics.jsonl and times.jsonl hold. A tracker is made once, by the first host, and handed down with the
run's folder. A stage that goes on after a kill begins at its last checkpoint, and so do its curves.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from fusion_jax.errors import InputError, first_line
from fusion_jax.hosts.agree import on_first
from fusion_jax.paths import is_remote

TrackerName = Literal["none", "tensorboard", "wandb"]
TRACKERS = ("tensorboard", "wandb")  # also the folder of each in the run's
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
OWN = "."  # the name of what a run trains in its own folder


class Tracker(Protocol):
    """Shows numbers by the step of a stage, which is named by its folder in the run; "." is the run's own folder."""

    def start(self, stage: str, step: int) -> None:
        """A stage begins at `step`: what was logged of that step or later is void."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""

    def close(self, code: int) -> None:
        """The run ends with this exit code."""


class TensorBoard:
    """Event files, a folder a stage: TensorBoard draws all stages of a run, and several runs, in the same charts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._begins = folder, dict[str, int]()
        self._writers: dict[str, Any] = {}

    def start(self, stage: str, step: int) -> None:
        self._begins[stage] = step
        if stage in self._writers:
            self._writers.pop(stage).close()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._writers:
            from tensorboardX import SummaryWriter

            # Readers drop what earlier files hold from `purge_step` on; a later file must sort behind them.
            self._writers[stage] = SummaryWriter(
                str(self._folder / stage), purge_step=self._begins.get(stage, 0), filename_suffix=f".{time.time_ns()}"
            )
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()  # a kill may follow, and the step may be behind the last checkpoint

    def close(self, code: int) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """A run of Weights & Biases; its id lies in the folder, and the run that is resumed goes on with it.

    Curves are named STAGE/METRIC and drawn over STAGE/step: the steps of each stage begin at 0. Steps between the last
    checkpoint and a kill are logged twice, with the same numbers. SIGKILL takes what the package has not yet written.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        file = folder / "run_id.txt"
        if not file.exists():
            folder.mkdir(exist_ok=True)
            file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fusion_jax"),
            name=os.environ.get("WANDB_NAME", folder.parent.name),
            id=file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=None if is_remote(folder) else folder.parent,
            config=dict(config),
        )

    def start(self, stage: str, step: int) -> None:
        prefix = _prefix(stage)
        self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        prefix = _prefix(stage)
        self._run.log({f"{prefix}step": step, **{f"{prefix}{name}": value for name, value in values.items()}})

    def close(self, code: int) -> None:
        self._run.finish(exit_code=code)


def _prefix(stage: str) -> str:
    return "" if stage == OWN else f"{stage}/"


@contextmanager
def tracking(name: TrackerName, folder: Path, config: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """The tracker of a run, closed at its end; None on the other hosts, and where none is wanted.

    Args:
      folder: of the run. config: its settings, which Weights & Biases shows.

    Raises:
      InputError: as `check_installed`; Weights & Biases cannot be reached or knows no user.
    """
    opened: list[Tracker] = []
    if name != "none":
        on_first(lambda: opened.append(_open(name, folder / name, config)))
    code = 1
    try:
        yield opened[0] if opened else None
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        raise
    finally:
        for tracker in opened:
            tracker.close(code)


def _open(name: TrackerName, folder: Path, config: Mapping[str, Any]) -> Tracker:
    if name == "tensorboard":
        if is_remote(folder):
            cure = "Give --track wandb, or a local --out"
            raise InputError("TensorBoard's files are written on a disk only", field="--track", cure=cure)
        return TensorBoard(folder)
    try:
        return WandB(folder, config)
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        cure = "Log in with `wandb login`, or set WANDB_MODE=offline"
        raise InputError(f"wandb: {first_line(error).rstrip('.')}", field="--track", cure=cure) from None


def check_installed(name: TrackerName) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
      InputError: names the command that installs it.
    """

    def look() -> None:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            problem, cure = f"{PACKAGES[name]} is not installed", f"Install it: pip install {PACKAGES[name]}"
            raise InputError(problem, field="--track", cure=cure)

    if name != "none":
        on_first(look)
