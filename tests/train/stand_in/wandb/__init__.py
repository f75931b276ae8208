"""A stand-in for the package `wandb` (0.31): what fusion_jax calls of it, with the same names and arguments.

`CALLS` keeps what it was told. An exception in `FAULTS` is raised by the function of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CALLS: list[tuple[str, dict[str, Any]]] = []
FAULTS: dict[str, Exception] = {}


class Error(Exception):
    def __init__(self, message: str, context: dict | None = None) -> None:
        super().__init__(message)


class CommError(Error):
    def __init__(self, msg: str, exc: Exception | None = None) -> None:
        super().__init__(msg)


class AuthenticationError(CommError):
    pass


class UsageError(Error):
    pass


def _call(name: str, /, **given: Any) -> None:
    CALLS.append((name, given))
    if name in FAULTS:
        raise FAULTS[name]


class Run:
    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        _call("log", data=data, step=step, commit=commit)

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        overwrite: bool | None = None,
    ) -> None:
        _call("define_metric", name=name, step_metric=step_metric)

    def finish(self, exit_code: int | None = None) -> None:
        _call("finish", exit_code=exit_code)


def init(
    entity: str | None = None,
    project: str | None = None,
    dir: Any = None,
    id: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Sequence[str] | None = None,
    config: dict[str, Any] | str | None = None,
    config_exclude_keys: list[str] | None = None,
    config_include_keys: list[str] | None = None,
    allow_val_change: bool | None = None,
    group: str | None = None,
    job_type: str | None = None,
    mode: str | None = None,
    force: bool | None = None,
    reinit: bool | str | None = None,
    resume: bool | str | None = None,
    resume_from: str | None = None,
    fork_from: str | None = None,
    save_code: bool | None = None,
    tensorboard: bool | None = None,
    sync_tensorboard: bool | None = None,
    monitor_gym: bool | None = None,
    settings: Any = None,
) -> Run:
    _call("init", project=project, dir=dir, id=id, name=name, config=config, resume=resume)
    return Run()
