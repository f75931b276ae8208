"""Options: what a settings dataclass takes from the command line, with types, choices and one sentence each.

Nested dataclasses give dotted names: `train.optimizer.learning_rate` is `--train.optimizer.learning-rate`. The sentence
of a field is the string that stands below it. `basic`, a ClassVar of a settings dataclass, names the options that
`--help` shows; `--help-all` shows every one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import os
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fusion_jax.errors import InputError, quoted

T = TypeVar("T")
EMPTY = "none"  # what stands for no value where a list is written
LARGEST = 2**31 - 1  # of a whole number: what int32 holds; seeds above 2**32 would repeat smaller ones


@dataclass(frozen=True)
class OneOf:
    """Beside a type in `Annotated`: the names that a text may be, and what each means, where the help shall say it."""

    names: tuple[str, ...]
    meanings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Called:
    """Beside a type in `Annotated`: what stands for a value in the help."""

    metavar: str


@dataclass(frozen=True)
class ModelKind:
    """Beside a type in `Annotated`: the value is a model. labels: scores of its head, 0 for a language model, None for
    a language model or a reward model."""

    labels: int | None = 0


class Mark:
    """Beside a type in `Annotated`: how the command line reads a field."""


POSITIONAL = Mark()
AS_IT_IS = Mark()
File = Annotated[str, Called("FILE")]
Folder = Annotated[str, Called("FOLDER")]
ModelPath = Annotated[str, Called("MODEL"), ModelKind()]  # a Hugging Face folder, a GGUF file, or zoo:NAME
RewardModel = Annotated[str, Called("MODEL"), ModelKind(1)]
AnyModel = Annotated[str, Called("MODEL"), ModelKind(None)]
Files = Annotated[tuple[str, ...], Called("FILE")]  # apart, or joined by commas
Folders = Annotated[tuple[str, ...], Called("FOLDER")]  # apart, or joined by commas
Models = Annotated[tuple[str, ...], Called("MODEL"), ModelKind()]  # apart, or joined by commas
Names = Annotated[tuple[str, ...], Called("NAME")]  # apart, or joined by commas
Positional = Annotated[T, POSITIONAL]  # given without the option's name
FreeTexts = Annotated[tuple[str, ...], AS_IT_IS]  # texts in which a comma is a comma


@dataclass(frozen=True)
class Option:
    """One setting. name: as on the command line, without the dashes in front; kind: its type, without `Annotated`."""

    name: str
    path: tuple[str, ...]
    kind: Any
    marks: tuple[Any, ...]
    default: Any
    owner: type

    @property
    def flag(self) -> str:
        return self.name if self.positional else f"--{self.name}"

    @property
    def positional(self) -> bool:
        return POSITIONAL in self.marks

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def item(self) -> Any:
        """The type of a value, or of each of several."""
        kind = _bare(get_args(self.kind)[0]) if self.is_list else self.kind
        if get_origin(kind) in (Union, types.UnionType):
            return next(k for k in get_args(kind) if k is not type(None))
        return kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have, as they are written, if they are few and known."""
        if self.one_of is not None:
            return self.one_of.names
        return tuple(map(str, get_args(self.item))) if get_origin(self.item) is Literal else ()

    @property
    def one_of(self) -> OneOf | None:
        """The names that it may be, where its type lists them."""
        inner = getattr(get_args(self.kind)[0], "__metadata__", ()) if self.is_list else ()
        return next((mark for mark in (*self.marks, *inner) if isinstance(mark, OneOf)), None)

    @property
    def may_be_empty(self) -> bool:
        """Whether a list is emptied by `EMPTY`: not one of texts as they are, nor where that is one of the choices."""
        return self.is_list and AS_IT_IS not in self.marks and EMPTY not in self.choices

    @property
    def metavar(self) -> str:
        """What stands for a value in the help."""
        called = [mark.metavar for mark in self.marks if isinstance(mark, Called)]
        plain = {bool: "True|False", int: "N", float: "X"}.get(self.item, "NAME" if self.choices else "TEXT")
        return f"{(called or [plain])[0]}{' ...' if self.is_list else ''}"

    @property
    def help(self) -> str:
        return sentences(self.owner).get(self.path[-1], "")

    def value(self, texts: Sequence[str]) -> Any:
        """What texts of the command line amount to.

        Raises:
          InputError: one is of another type, or not one of the choices.
        """
        if self.is_list:
            emptied = self.may_be_empty and list(texts) == [EMPTY]
            return () if emptied else tuple(self._one(text) for text in self._separate(texts))
        return self._one(texts[0])

    def _separate(self, texts: Sequence[str]) -> list[str]:
        """Values that are joined by commas, apart; a path or text that holds a comma stays whole."""
        if AS_IT_IS in self.marks:
            return list(texts)
        split = (t.split(",") if "," in t and (self.item is not str or not os.path.exists(t)) else [t] for t in texts)
        return [part.strip() for part in itertools.chain.from_iterable(split)]

    def _one(self, text: str) -> Any:
        if self.item is bool:
            if text.lower() in TRUE | FALSE or (text.lower() == "auto" and self.path[-1] == "resume"):
                return text.lower() not in FALSE
            raise self.error(f"{quoted(text)} is neither True nor False", "Give True or False")
        if self.item in (int, float):
            if text == "None" and type(None) in get_args(self.kind):
                return None
            try:
                return self.item(text)
            except ValueError:
                what = "a whole number" if self.item is int else "a number"
                one = ": it takes one, not a list" if "," in text else ""
                raise self.error(f"{quoted(text)} is not {what}", f"Give {what}{one}") from None
        if self.choices and text not in self.choices:
            raise self.error(f"{quoted(text)} is not one of its choices", suggestion(text, self.choices))
        if get_origin(self.item) is Literal:
            return get_args(self.item)[self.choices.index(text)]
        return text

    def error(self, problem: str, cure: str) -> InputError:
        return InputError(problem, field=self.flag, cure=cure)


TRUE, FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def options_of(settings: Any, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every option of a settings dataclass, with the values that it has now as defaults, in the order of the fields."""
    owner = type(settings)
    hints = get_type_hints(owner, include_extras=True)
    for field in dataclasses.fields(settings):
        value, below = getattr(settings, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            yield from options_of(value, below)
            continue
        kind = hints[field.name]
        marks = kind.__metadata__ if get_origin(kind) is Annotated else ()
        yield Option(".".join(below).replace("_", "-"), below, _bare(kind), marks, value, owner)


def basic_options(settings: Any) -> list[Option]:
    """The options that a short help shows: those that `basic` names, in its order; without it, the ungrouped ones;
    then those that `always_basic` names."""
    every = {".".join(option.path): option for option in options_of(settings)}
    named = getattr(type(settings), "basic", [name for name in every if "." not in name])
    return [every[name] for name in dict.fromkeys([*named, *getattr(type(settings), "always_basic", ())])]


@functools.cache
def sentences(owner: type) -> dict[str, str]:
    """The string below each field of a dataclass or of those it extends, in one line; nothing without the source."""
    inherited: dict[str, str] = {}
    for base in owner.__mro__[1:]:
        if dataclasses.is_dataclass(base):
            inherited = sentences(base) | inherited
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError, SyntaxError):
        return inherited
    found = dict(inherited)
    for field, below in itertools.pairwise(getattr(body, "body", ())):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def suggestion(name: str, known: Iterable[str], what: str = "Choose one of") -> str:
    """A cure for a name that is none: the nearest one, and all where they are few."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5) or [n for n in names if n and n in name][:1]
    meant = f"Did you mean '{near[0]}'? " if near else ""
    return f"{meant}{what} {', '.join(names[:40])}"


def built(settings: T, given: dict[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> T:
    """The settings with other values, each checked.

    Args:
      given: path of a field -> its value.

    Raises:
      InputError: a value is out of range; names its option.
    """
    changes = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value, below = getattr(settings, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = built(value, given, below)
        elif below in given:
            changes[field.name] = given[below]
    try:
        new = dataclasses.replace(settings, **changes)  # type: ignore[type-var]
        for option in options_of(new):
            _sound(option)
    except InputError as error:
        raise as_option(error, list(options_of(settings, path)), [".".join(p) for p in given]) from None
    return new


def _sound(option: Option) -> None:
    """Refuse what no setting may be: not finite, larger than int32, text that no file could hold, empty parts."""
    name = ".".join(option.path)
    for value in option.default if option.is_list else (option.default,):
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
                problem = f"{quoted(value)} holds characters that are no text"
                raise InputError(problem, field=name, cure="Give it in UTF-8, without NUL")
            if option.is_list and not value.strip() and AS_IT_IS not in option.marks:
                raise InputError("one of the values is empty", field=name, cure="Leave it out")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{value} is out of range", field=name, cure="Give a finite number")
        elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            raise InputError(f"{quoted(value)} is out of range", field=name, cure=f"Give {LARGEST} or less")


def as_option(error: InputError, known: Sequence[Option], given: Iterable[str] = ()) -> InputError:
    """The error with its field as the option that a user gave, where it is the name of a setting.

    A field of a file or record stays as it is; of several settings of one name, those that were given are meant.

    Args:
      given: dotted names of the settings that were given.
    """
    if error.field is None or error.field.startswith("-") or error.file is not None or error.record is not None:
        return error
    name = error.field.replace("_", "-")
    found = [o for o in known if o.name == name] or [o for o in known if o.name.endswith(f".{name}")]
    explicit = {g.replace("_", "-") for g in given}
    found = [o for o in found if o.name in explicit] or found
    if not found or len(found) > 3:
        return error
    field = " or ".join(o.flag for o in found)
    return type(error)(error.problem, field=field, cure=error.cure)
