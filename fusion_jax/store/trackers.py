"""Programs that show metrics while a run trains: TensorBoard and Weights & Biases, where they are installed.

They show what metrics.jsonl and times.jsonl hold. A tracker is made once, by the first host, and handed down with the
run's folder. A stage that goes on after a kill begins at its last checkpoint, and so do its curves.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from fusion_jax.errors import InputError, first_line
from fusion_jax.files import replacing
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
        file = folder / "run_id.txt"
        if not file.exists():
            folder.mkdir(exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = _wandb_run(folder, file.read_text(encoding="utf-8").strip(), config)

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


def _wandb_run(folder: Path, name: str, config: Mapping[str, Any]) -> Any:
    """The `wandb.Run` of that id, begun or gone on with."""
    try:
        import wandb

        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fusion_jax"),
            name=os.environ.get("WANDB_NAME", folder.parent.name),
            id=name,
            resume="allow",
            dir=None if is_remote(folder) else folder.parent,
            config=dict(config),
        )
    except Exception as error:
        said, kind = first_line(error).rstrip("."), type(error).__name__
        if kind == "AuthenticationError" or "wandb login" in said:
            cure = "Log in with `wandb login`, or set WANDB_MODE=offline"
        elif kind == "CommError":
            cure = "Check the network and WANDB_BASE_URL, or set WANDB_MODE=offline"
        else:
            cure = "Set that right, or leave --track out (a run may be resumed with or without it)"
        raise InputError(f"wandb: {kind}: {said}", field="--track", cure=cure) from error


class Guarded:
    """A tracker whose faults stop no run: the first one is logged, and nothing more is shown from then on.

    Args:
      log: takes the line that says so.
    """

    def __init__(self, name: str, tracker: Tracker, log: Callable[[str], None]) -> None:
        self._name, self._log = name, log
        self._tracker: Tracker | None = tracker

    def start(self, stage: str, step: int) -> None:
        self._do(lambda tracker: tracker.start(stage, step))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._do(lambda tracker: tracker.log(stage, step, values))

    def close(self, code: int) -> None:
        self._do(lambda tracker: tracker.close(code))

    def _do(self, what: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            what(self._tracker)
        except Exception as error:
            self._tracker = None
            said = f"{type(error).__name__}: {first_line(error)}"
            self._log(f"{self._name} failed and shows nothing more of this start; the run goes on ({said})")


@contextmanager
def tracking(
    name: TrackerName, folder: Path, config: Mapping[str, Any], log: Callable[[str], None]
) -> Iterator[Tracker | None]:
    """The tracker of a run, closed at its end; None on the other hosts, and where none is wanted.

    Args:
      folder: of the run. config: its settings, which Weights & Biases shows. log: see `Guarded`.

    Raises:
      InputError: as `check_installed`; Weights & Biases cannot be reached, knows no user or fails otherwise.
    """
    opened: list[Tracker] = []
    if name != "none":
        on_first(lambda: opened.append(Guarded(name, _open(name, folder / name, config), log)))
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
    if name != "tensorboard":
        return WandB(folder, config)
    if is_remote(folder):
        cure = "Give --track wandb, or a local --out"
        raise InputError("TensorBoard's files are written on a disk only", field="--track", cure=cure)
    return TensorBoard(folder)


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
