"""Checkpoints of a training state: Orbax, written whole or not at all, the last few kept."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from fusion_jax.errors import InputError
from fusion_jax.train.state import TrainState


def open_checkpoints(path: Path, *, keep: int = 1) -> ocp.CheckpointManager:
    """A manager over `path`; writing goes on in the background, a kill leaves only whole checkpoints behind."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(path.absolute(), options=options)


def save_state(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Start writing `state`; its arrays are copied before this returns, so that the step may donate them."""
    step = int(state.step)
    if manager.latest_step() != step:
        manager.save(step, args=ocp.args.StandardSave(state))


def restore_state(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The latest state with the shapes and shardings of `like`, or None where there is none.

    Raises:
      InputError: the checkpoint does not fit the model or the optimizer.
    """
    step = manager.latest_step()
    if step is None:
        return None
    try:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(
            f"checkpoint {step} cannot be restored ({str(error).splitlines()[0]})",
            file=str(manager.directory), cure="Resume with the model and settings it was written with",
        ) from None  # fmt: skip
