"""A training stage of a run: made once, and read from its folder ever after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from fusion_jax.hosts.agree import on_first
from fusion_jax.models.folder import Model, load, save
from fusion_jax.models.peft_folder import save_adapter
from fusion_jax.store.run_folder import RunFolder


def trained(
    run: RunFolder,
    like: Model,
    mesh: Mesh | None,
    train: Callable[[RunFolder], Model],
    *,
    made_from: Sequence[str] | None = None,
    leaf: bool = False,
) -> Model:
    """A training stage: its finished model read from the folder, or trained and saved there in float32, with the
    adapter beside it, where one was trained.

    Args:
      made_from, leaf: as in `RunFolder.made_once`.

    Raises:
      InputError: the finished model is not as it was written, or was made from something else.
    """

    def make(folder: Path) -> None:
        model = train(run)
        on_first(run.secure)
        with run.phase("saving"):
            keep_adapter(run, model)
            save(model, folder, dtype="float32")

    run.made_once("model", make, made_from=made_from, leaf=leaf)
    with run.phase("loading"):
        return dataclasses.replace(load(run.file("model"), mesh=mesh), file_dtype=like.file_dtype)


def keep_adapter(run: RunFolder, model: Model) -> None:
    """Write the adapter that was trained of a model, if one was, as the PEFT folder `adapter` of a run."""
    if (adapter := model.adapter) is not None:
        run.made_once("adapter", lambda folder: save_adapter(model.config, adapter, folder), made_from=[], leaf=True)
