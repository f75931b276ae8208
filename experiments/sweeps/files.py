"""Sweep files: YAML read into cells whose options the experiment was asked about, before anything runs."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.merge.recipes.places import Place, mapping, nearest, sequence, shown
from fusion_jax.options import built
from fusion_jax.settings import parse
from fusion_jax.yaml_files import read_yaml

EXPERIMENTS = Path(__file__).resolve().parents[1]
MOST_CELLS = 1000
FIELDS = ("about", "experiment", "options", "grid", "cells", "models", "published")
OWN = ("out", "resume", "seed", "seeds", "train.seed")  # what the sweep itself gives every run


@dataclass(frozen=True)
class Experiment:
    """What can be swept. presets: its settings by name; seed: the option that seeds it; known: all its options."""

    script: Path
    presets: Mapping[str, Any]
    seed: str
    known: frozenset[str]


@dataclass(frozen=True)
class Cell:
    """One combination of options. args: its command line, without seed and folder; settings: what they amount to."""

    name: str
    options: Mapping[str, Any]
    args: tuple[str, ...]
    settings: Any
    experiment: Experiment

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+-]+", "_", self.name).lstrip(".")[:100]


@dataclass(frozen=True)
class Sweep:
    """A sweep file as it was read. experiment: the name of what its cells run, where they do not say it themselves;
    grid: the options that tell cells apart, none where they have names; models: those that are shown, none for all;
    published: of a cell, as one text or by model.
    """

    file: Path
    about: str
    experiment: str
    cells: tuple[Cell, ...]
    grid: tuple[str, ...]
    models: tuple[str, ...]
    published: Mapping[str, str | Mapping[str, str]]

    @property
    def name(self) -> str:
        return self.file.stem

    def settings(self, cell: Cell, seed: int) -> Any:
        """The settings of a run."""
        return built(cell.settings, {tuple(cell.experiment.seed.split(".")): seed})


def read_sweep(path: Path) -> Sweep:
    """A sweep from its YAML file.

    Raises:
      InputError: no such file, broken YAML, a key, experiment or option that is unknown (naming the nearest), a value
        that the experiment does not take, an option that belongs to the sweep, no cells or two of one name.
    """
    place = Place(str(path))
    top = mapping(read_yaml(path, "sweep"), FIELDS, place)
    base = _experiment(top.get("experiment"), place / "experiment", path.parent)
    given = [key for key in ("grid", "cells") if top.get(key)]
    if len(given) != 1:
        raise (place / "grid").error(f"{'stands beside' if given else 'is missing, as are'} cells", "Give one of both")
    if given == ["grid"]:
        own = {name: (base, o) for name, o in _grid(top["grid"], place / "grid", base.known).items()}
    else:
        own = _named(top["cells"], place / "cells", base, path.parent)
    cells = []
    for name, (experiment, options) in own.items():
        options = {**_options(top.get("options"), place / "options", experiment.known), **options}
        args = tuple(itertools.chain(*([_flag(key), *_texts(value)] for key, value in options.items())))
        settings = _asked(experiment.presets, args, place / given[0] / name)
        cells.append(Cell(name, options, args, settings, experiment))
    _check_folders(cells, place / given[0])
    return Sweep(
        path, str(top.get("about", "")), base.script.stem, tuple(cells),
        tuple(key.replace("-", "_") for key in top["grid"]) if given == ["grid"] else (),
        tuple(map(str, sequence(top["models"], place / "models"))) if top.get("models") else (),
        _published(top.get("published"), place / "published", list(own)),
    )  # fmt: skip


def _experiment(raw: Any, place: Place, beside: Path) -> Experiment:
    """One of experiments/ by name, or a .py file beside the sweep."""
    script, module = _script(raw, place, beside)
    presets = getattr(module, "PRESETS", None) or {"tiny": module.Settings()}
    known = frozenset(_names(next(iter(presets.values()))))
    seed = next((name for name in ("seed", "train.seed") if name in known), "")
    if not ({"out", "resume"} <= known and seed):
        raise place.error(
            f"{script.name} has no --out, --resume and --seed", "Name one whose runs are folders that can be resumed"
        )
    return Experiment(script, presets, seed, known)


def _script(raw: Any, place: Place, beside: Path) -> tuple[Path, ModuleType]:
    if not isinstance(raw, str):
        raise place.error(
            "is missing" if raw is None else f"must be a name, not {shown(raw)}", "Name one, such as wrpo"
        )
    if raw.endswith(".py"):
        script = (beside / raw).resolve()
        name = f"swept_{script.stem}"
        spec = importlib.util.spec_from_file_location(name, script) if script.is_file() else None
        if spec is None or spec.loader is None:
            raise place.error(f"there is no {script}", "Give the path of an experiment, from the sweep file's folder")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        names = [p.stem for p in EXPERIMENTS.glob("[a-z]*.py")]
        if raw not in names:
            raise place.error(f"no experiment is called {shown(raw)}", nearest(raw, names))
        script, module = EXPERIMENTS / f"{raw}.py", importlib.import_module(f"experiments.{raw}")
    if not dataclasses.is_dataclass(getattr(module, "Settings", None)):
        raise place.error(f"{script.name} has no Settings", "Name an experiment")
    return script, module


def _names(settings: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _names(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _options(raw: Any, place: Place, known: Set[str]) -> dict[str, Any]:
    out = {}
    for key, value in mapping(raw, None, place).items():
        name = str(key).replace("-", "_")
        if name in OWN:
            raise (place / str(key)).error("is given by the sweep", "Leave it out; see --seed, --seeds and --out")
        if name not in known | {"preset"}:
            raise (place / str(key)).error("is no setting of the experiment", nearest(name, known | {"preset"}))
        if not all(isinstance(v, bool | int | float | str) for v in (value if isinstance(value, list) else [value])):
            raise (place / str(key)).error(f"must be a value or a list of values, not {shown(value)}", "Write one")
        for text in _texts(value):
            if text.startswith("-") and not _is_number(text):
                raise (place / str(key)).error(f"{shown(text)} would be read as an option", "Leave out the -")
        out[name] = value
    return out


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grid(raw: Any, place: Place, known: Set[str]) -> dict[str, dict[str, Any]]:
    """Every combination, the last option changing first; named by the last parts of the options' names."""
    values = {}
    for key, several in mapping(raw, None, place).items():
        each = [_options({key: value}, place, known) for value in sequence(several, place / str(key))]
        values[next(iter(each[0]))] = [next(iter(one.values())) for one in each]
    count = math.prod(map(len, values.values()))
    if count > MOST_CELLS:
        raise place.error(f"asks for {count} cells, {MOST_CELLS} at most are run", "Give fewer values")
    last = [key.rpartition(".")[2] for key in values]
    short = dict(zip(values, last if len(set(last)) == len(last) else values))
    out: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*values.values()):
        options = dict(zip(values, combination))
        name = ", ".join(f"{short[key]}={'+'.join(_texts(value))}" for key, value in options.items())
        if name in out:
            raise place.error(f"{name} stands twice", "Give each value once")
        out[name] = options
    return out


def _named(raw: Any, place: Place, base: Experiment, beside: Path) -> dict[str, tuple[Experiment, dict[str, Any]]]:
    """Each cell's options, and its experiment, which it may name itself."""
    out = {}
    for name, given in mapping(raw, None, place).items():
        here = place / str(name)
        options = dict(mapping(given, None, here))
        named = options.pop("experiment", None)
        own = base if named is None else _experiment(named, here / "experiment", beside)
        out[str(name)] = own, _options(options, here, own.known)
    return out


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _texts(value: Any) -> list[str]:
    """A value as the command line takes it."""
    return [str(v) for v in (value if isinstance(value, list) else [value])]


def _asked(presets: Mapping[str, Any], args: tuple[str, ...], place: Place) -> Any:
    """What the experiment makes of a command line."""
    try:
        return parse(presets, args)
    except InputError as error:
        field = f"{place.field}: {error.field}"
        raise InputError(error.problem, file=place.file, field=field, cure=error.cure) from None


def _check_folders(cells: list[Cell], place: Place) -> None:
    """Each cell has a folder of its own."""
    folders: dict[str, str] = {}
    for cell in cells:
        other = folders.setdefault(cell.folder.lower(), cell.name)
        if other != cell.name or not cell.folder:
            raise place.error(f"{shown(cell.name)} would have the folder of {shown(other)}", "Rename one of them")


def _published(raw: Any, place: Place, cells: list[str]) -> dict[str, str | dict[str, str]]:
    out: dict[str, str | dict[str, str]] = {}
    for name, text in mapping(raw, None, place).items():
        if name not in cells:
            raise (place / str(name)).error("is no cell", nearest(name, cells))
        out[name] = {str(k): str(v) for k, v in text.items()} if isinstance(text, Mapping) else str(text)
    return out
