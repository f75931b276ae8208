"""Checkpoints of a training state: Orbax, written whole or not at all, the last few kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from fusion_jax.errors import InputError, first_line
from fusion_jax.hosts import agreed, seen
from fusion_jax.train.state import TrainState


def open_checkpoints(path: Path, *, keep: int = 1) -> ocp.CheckpointManager:
    """A manager over `path`, which all hosts see; each writes what its devices hold.

    Writing goes on in the background, a kill leaves only whole checkpoints behind.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(path.absolute(), options=options)


@contextmanager
def finishing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Around the writing of checkpoints: at the end, also that of an error, what has begun is written whole.

    But not after a fault of the devices: a host may be gone, and the others would wait for its part.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise
    except BaseException:
        manager.wait_until_finished()
        manager.close()
        raise
    manager.wait_until_finished()
    manager.close()


def save_state(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Start writing `state`; its arrays are copied before this returns, so that the step may donate them."""
    step = int(state.step)
    if bool(agreed(np.asarray(manager.latest_step() != step))):  # each host has its own list, read when it came
        manager.save(step, args=ocp.args.StandardSave(state))


def restore_state(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The latest state with the shapes and shardings of `like`, or None where there is none.

    Raises:
      InputError: the checkpoint does not fit the model or the optimizer.
    """
    step = int(agreed(np.asarray(-1 if (latest := manager.latest_step()) is None else latest)))
    if step < 0:
        return None
    seen(Path(manager.directory) / str(step))
    try:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(
            f"checkpoint {step} cannot be restored ({first_line(error)})",
            file=str(manager.directory), cure="Resume with the model and settings it was written with",
        ) from None  # fmt: skip
