"""Checkpoints of a training state: Orbax, written whole or not at all, the last few kept."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from fusion_jax.errors import DiskError, InputError, first_line
from fusion_jax.files import fault, writing
from fusion_jax.hosts.agree import agreed, first_host, on_first, seen
from fusion_jax.paths import bucket_faults, is_remote, remove
from fusion_jax.store.manifest import Manifests
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.state import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of a training stage: an Orbax manager over a folder that all hosts see, and their manifests.

    Writing goes on in the background, a kill leaves only whole checkpoints behind. One that is whole gets its manifest
    a little later, from a thread that reads it again: what was killed before that is taken as Orbax has written it.
    Where several hosts write a checkpoint, or one lies on a bucket, it has none.

    Args:
      keep: how many last ones stay. every: where several do, those that are whole intervals of so many steps apart stay
        in preference to others, which a preemption leaves.

    Raises:
      InputError: the folder's path holds a bracket.
    """

    def __init__(self, run: RunFolder, *, keep: int = 1, every: int = 1) -> None:
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised, too
        self.path = run.file(FOLDER)
        place = self.path if is_remote(self.path) else self.path.absolute()
        if "[" in str(place):  # what was written would not be found again
            problem, cure = "holds a bracket, which Orbax takes for a pattern", "Rename it, or choose another --out"
            raise InputError(problem, file=place, field="--out", cure=cure)
        import orbax.checkpoint as ocp

        self._every = every
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(place, options=options)
        self._manifests, self._name = run.manifests, run.name(FOLDER)
        self._on_first = run.on_first
        self._pending: int | None = None
        self._sealing: threading.Thread | None = None

    def latest(self) -> int | None:
        """The step of the last checkpoint, the same on all hosts."""
        step = int(agreed(np.asarray(-1 if (latest := self.manager.latest_step()) is None else latest)))
        return None if step < 0 else step

    def apart(self, count: int) -> list[int]:
        """The steps of the last `count` checkpoints that are whole intervals apart; without any the last one."""
        steps = sorted(self.manager.all_steps())
        return ([step for step in steps if step % self._every == 0] or steps[-1:])[-count:]

    def start(self, step: int, state: TrainState) -> None:
        """Begin to write a checkpoint; manifests of the ones that it replaces go first, whose files Orbax removes."""
        self.finish()
        self._on_first(self._forget)  # what was logged before a checkpoint is read with it
        for old in sorted(self.manager.all_steps())[:-1]:
            if old % self._every:
                self.manager.delete(old)
        import orbax.checkpoint as ocp

        self.manager.save(step, args=ocp.args.StandardSave(state))
        self._pending = step

    def _forget(self) -> None:
        for old in self._manifests.names():
            if old.startswith(f"{self._name}/"):
                remove(self._manifests.file(old))

    def settle(self) -> None:
        """Begin to write the manifest of a checkpoint that is whole by now; does not wait."""
        if self._pending is None or self.manager.is_saving_in_progress():
            return
        self.manager.check_for_errors()
        if first_host() and jax.process_count() == 1 and not is_remote(self.path):
            name = f"{self._name}/{self._pending}"
            self._sealing = threading.Thread(target=_seal, args=(self._manifests, name), daemon=True)
            self._sealing.start()
        self._pending = None

    def finish(self) -> None:
        """Wait until what has begun is written."""
        self.manager.wait_until_finished()
        self.settle()
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None

    def compare(self, step: int) -> None:
        """Compare a checkpoint with its manifest, where it has one.

        Raises:
          InputError: it was changed.
        """
        try:
            self._manifests.compare(f"{self._name}/{step}")
        except InputError as error:
            cure = f"Delete {self.path}; the stage then begins anew"
            raise InputError(error.problem, file=error.file, cure=cure) from None


def _seal(manifests: Manifests, name: str) -> None:
    """Without a manifest, which a full disk may forbid, the checkpoint is as good as before."""
    try:
        manifests.seal(name, made_from=())
    except OSError:
        manifests.file(name).unlink(missing_ok=True)
    else:
        manifests.leave(name)


@contextmanager
def finishing(checkpoints: Checkpoints) -> Iterator[None]:
    """Around the writing of checkpoints: at the end, also that of an error, what has begun is written whole.

    But not after a fault of the devices: a host may be gone, and the others would wait for its part.

    Raises:
      DiskError: a checkpoint could not be written; what was begun of it is removed.
    """
    with _quiet_threads():
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise
        except BaseException:
            with _writing(checkpoints):
                checkpoints.finish()
            checkpoints.manager.close()
            raise
        with _writing(checkpoints):
            checkpoints.finish()
        checkpoints.manager.close()


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Orbax's threads raise a fault of the disk, and Orbax raises it again where it is waited for; writes that were
    under way beside it then find their event loop closed."""
    before, before_late = threading.excepthook, sys.unraisablehook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or fault(args.exc_value) is None:
            before(args)

    def late(args: sys.UnraisableHookArgs) -> None:
        if str(args.exc_value) != "Event loop is closed":
            before_late(args)

    threading.excepthook, sys.unraisablehook = hook, late
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before, before_late


@contextmanager
def _writing(checkpoints: Checkpoints) -> Iterator[None]:
    try:
        with writing("a checkpoint", checkpoints.path):
            yield
    except InputError:
        if jax.process_count() == 1:
            for begun in checkpoints.path.glob("*.orbax-checkpoint-tmp*"):
                if is_remote(begun):
                    remove(begun)
                else:
                    shutil.rmtree(begun, ignore_errors=True)
        raise


def save_state(checkpoints: Checkpoints, state: TrainState) -> None:
    """Start writing `state`; its arrays are copied before this returns, so that the step may donate them.

    Raises:
      DiskError: this checkpoint, or the one before it, could not be written.
    """
    step = int(state.step)
    if bool(agreed(np.asarray(checkpoints.manager.latest_step() != step))):  # each host has its own list
        with _writing(checkpoints):
            checkpoints.start(step, state)


def restore_state(checkpoints: Checkpoints, like: TrainState, step: int | None = None) -> TrainState | None:
    """The state after a step, or the latest, with the shapes and shardings of `like`; None where there is none.

    Raises:
      InputError: the checkpoint was changed after it was written, or does not fit the model or the optimizer.
      DiskError: a bucket does not give it.
    """
    step = checkpoints.latest() if step is None else step
    if step is None:
        return None
    seen(checkpoints.path / str(step))
    on_first(lambda: checkpoints.compare(step))
    try:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        import orbax.checkpoint as ocp

        with bucket_faults(checkpoints.path, doing=f"checkpoint {step} cannot be read"):
            return checkpoints.manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except DiskError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(
            f"checkpoint {step} cannot be restored ({first_line(error)})",
            file=str(checkpoints.manager.directory),
            cure="Resume with the model and settings it was written with, or delete it: the stage then begins anew",
        ) from None  # fmt: skip
