"""Settings that a run would refuse hours later, refused before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.models.folder import check_folder
from fusion_jax.options import ModelKind, Option, options_of, suggestion
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo import model_path


def check_options(settings: Any, unread: Collection[str] = ()) -> None:
    """Look at every model that an option names, and at every name that has to be one of a few.

    Args:
      unread: fields of models that this run does not load.

    Raises:
      InputError: a folder that `load` would refuse, a model of another kind than the option's, an unknown name.
    """
    for option in options_of(settings):
        values = option.default if option.is_list else (option.default,)
        for value in values:
            if option.choices and str(value) not in option.choices and value is not None:
                raise option.error(f"'{value}' is not one of its choices", suggestion(str(value), option.choices))
            if value and option.path[0] not in unread and (kind := model_kind(option)):
                check_models(option.flag, value, labels=kind.labels)


def model_kind(option: Option) -> ModelKind | None:
    """What model an option names; None for an option that names none."""
    return next((mark for mark in option.marks if isinstance(mark, ModelKind)), None)


def check_models(option: str, *models: str, labels: int | None = 0) -> None:
    """Refuse folders that `load` would refuse later, and models of another kind.

    Args:
      option: the setting that names them.
      labels: scores of the head: 1 is a reward model, 0 a language model, None either of them.
    """
    for model in models:
        try:
            found = check_folder(model_path(model, option)).head.labels
        except InputError as error:
            raise InputError(error.problem, file=error.file, field=error.field or option, cure=error.cure) from None
        if found not in ((0, 1) if labels is None else (labels,)):
            wanted = "a language model has none" if labels == 0 else "a reward model has one"
            raise InputError(f"has {found} scores, {wanted}", file=model, field=option, cure="Give another folder")


def model_name(model: str) -> str:
    """What a model is called in records, files and tables: its folder's name."""
    return Path(model.removeprefix("zoo:")).name


def check_names(models: Sequence[str], reserved: Sequence[str] = (), field: str = "sources") -> None:
    """Refuse models that would be called the same; `field` is the setting that names them.

    Raises:
      InputError: names the second of them.
    """
    names = [*reserved, *map(model_name, models)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"two models are called '{name}'", field=field, cure="Rename one of the folders")


def check_skipped(given: Mapping[str, object], by: str) -> None:
    """Refuse options of stages that ready records skip.

    Args:
      given: option, without its dashes -> its value, or whether it is given. by: the option of the ready records.

    Raises:
      InputError: names the first that is given.
    """
    for option, value in given.items():
        if value:
            problem = f"belongs to a stage that {by} skips"
            raise InputError(problem, field=f"--{option}", cure="Leave one of the two out")


def check_best_of(sft: TrainSettings, last: TrainSettings, name: str, held_out: float) -> None:
    """Refuse to keep the best of several checkpoints where no record is held out to tell which it is.

    Args:
      sft: settings of SFT, which holds none out. last, name: of the training behind it; held_out: its share.
    """
    if sft.best_of > 1:
        raise InputError("needs held-out records, which SFT has none of", field="sft.best_of", cure="Leave it at 1")
    if last.best_of > 1 and not held_out:
        raise InputError("needs held-out records", field=f"{name}.best_of", cure="Give --held-out a share")


def check_arms(arms: Sequence[str]) -> None:
    """Refuse an experiment without arms, and arms that stand twice.

    Raises:
      InputError: names the first of them.
    """
    if not arms:
        raise InputError("there is none", field="arms", cure="Give at least one")
    for i, arm in enumerate(arms):
        if arm in arms[:i]:
            raise InputError(f"'{arm}' stands twice", field="arms", cure="Leave one out")
