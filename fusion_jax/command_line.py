"""The command line of a program with settings: presets, options, help, and one line for each mistake."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from fusion_jax.errors import InputError, quoted
from fusion_jax.options import EMPTY, OneOf, Option, basic_options, built, options_of, suggestion

S = TypeVar("S")
HELP = ("-h", "--help", "--help-all")
WIDTH = 100  # columns of the help, at most


@dataclass(frozen=True)
class Given(Generic[S]):
    """What a command line amounts to. beside: the options that are no settings; options: all that could be given;
    names: the dotted names of those that were."""

    settings: S
    beside: Any
    preset: str
    options: tuple[Option, ...]
    names: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, cure="See --help")


def read(presets: Mapping[str, S], args: Sequence[str], *, description: str, beside: Any = None) -> Given[S]:
    """Command line to settings: the preset's values, overridden by the options given.

    Args:
      beside: a dataclass of further options, which are no settings.

    Raises:
      InputError: an option or preset that is unknown, naming the nearest; a value of the wrong type or out of range.
      SystemExit: `--help` or `--help-all`, after they are printed.
    """
    extra = () if beside is None else tuple(options_of(beside))
    names = {o.name for o in (*options_of(next(iter(presets.values()))), *extra)} | {"preset", "help", "help-all"}
    preset, tokens = _preset(presets, [_plain_dashes(token, names) for token in args])
    own = tuple(options_of(presets[preset]))
    known = {option.name: option for option in (*own, *extra)}
    if set(tokens) & set(HELP):
        asked = "--help-all" in tokens
        some = [*basic_options(presets[preset]), *([] if beside is None else basic_options(beside))]
        print(help_text(presets, preset, [*own, *extra] if asked else some, description, full=asked))
        raise SystemExit(0)
    texts = _texts(known, tokens, presets)
    values = {known[name].path: known[name].value(found) for name, found in texts.items()}
    mine = {o.path: values[o.path] for o in own if o.path in values}
    others = {o.path: values[o.path] for o in extra if o.path in values}
    return Given(
        built(presets[preset], mine), None if beside is None else built(beside, others), preset, (*own, *extra),
        tuple(texts),
    )  # fmt: skip


def _plain_dashes(token: str, names: Collection[str]) -> str:
    """The name of an option spelt with dashes; documents make one long dash of the two in front. Other texts stay."""
    name, equals, value = token.partition("=")
    plain = name.lstrip("\u2013\u2014\u2212-").replace("_", "-")
    spelt = name[:1] in ("\u2013", "\u2014", "\u2212") or name.startswith("--")
    return f"--{plain}{equals}{value}" if spelt and plain in names else token


def _preset(presets: Mapping[str, S], tokens: list[str]) -> tuple[str, list[str]]:
    """The preset's name and the tokens without it."""
    name, left = next(iter(presets)), []
    rest = iter(tokens)
    for token in rest:
        if token != "--preset" and not token.startswith("--preset="):
            left.append(token)
            continue
        name = token.partition("=")[2] if "=" in token else next(rest, "")
        if name.startswith("-"):
            name = ""
        if name not in presets:
            problem = f"no preset is called {quoted(name)}" if name else "needs a name"
            raise InputError(problem, field="--preset", cure=suggestion(name, presets))
    return name, left


def _texts(known: Mapping[str, Option], tokens: list[str], presets: Iterable[str]) -> dict[str, list[str]]:
    """Option name -> the texts given for it."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False)
    for option in known.values():
        if option.positional:
            parser.add_argument(option.name, nargs="*" if option.is_list else "?")
        else:
            parser.add_argument(option.flag, nargs="*" if option.is_list else None, action="append", dest=option.name)
    try:
        found, left = parser.parse_known_args(_joined(known, tokens))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").split("/")[0]
        raise InputError(error.message, field=name or None, cure="See --help") from None
    if left:
        raise _unknown(left[0], known, tokens, presets)
    out: dict[str, list[str]] = {}
    for name, value in vars(found).items():
        option = known[name]
        given = value if isinstance(value, list) else [] if value is None else [value]
        if option.is_list and not option.positional:
            if len(given) > 1:
                raise option.error("is given twice", "Give all its values behind one of them")
            given = given[0]
            if not given and option.default:
                raise option.error("is given without a value", "Give one or more, or leave it out")
        if given or not option.positional:
            out[name] = given if option.is_list else given[-1:]
    return out


def _joined(known: Mapping[str, Option], tokens: list[str]) -> list[str]:
    """Tokens in which an option that takes one value is `--name=value`, so that a value may begin with a dash; and a
    bare flag in front of something else than a truth is `--name=True`."""
    out: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        option = known.get(token[2:]) if token.startswith("--") else None
        negated = known.get(token[5:]) if token.startswith("--no-") else None
        if token[2:] not in known and negated is not None and negated.item is bool:
            out.append(f"{negated.flag}=False")
        elif option is None or option.is_list:
            out.append(token)
        elif option.item is bool:
            truth = bool(rest) and not rest[0].startswith("-") and _is_truth(option, rest[0])
            out.append(f"{token}={rest.pop(0) if truth else 'True'}")
        elif not rest or rest[0].startswith("--"):
            raise option.error("needs a value", f"Write {token} {option.metavar}")
        else:
            out.append(f"{token}={rest.pop(0)}")
    return out


def _is_truth(option: Option, text: str) -> bool:
    try:
        option.value([text])
    except InputError:
        return not _positional_follows(option, text)
    return True


def _positional_follows(option: Option, text: str) -> bool:
    """Whether a text behind a bare flag is rather something of its own: a file, not a misspelt truth."""
    return "." in text or os.sep in text


def _unknown(token: str, known: Mapping[str, Option], tokens: Sequence[str], presets: Iterable[str]) -> InputError:
    name = token.partition("=")[0]
    if not token.startswith("-"):
        if token in presets:
            return InputError(f"{quoted(token)} stands alone", cure=f"Did you mean --preset {token}?")
        if name.replace("_", "-") in known and "=" in token:
            return InputError(f"{quoted(token)} stands alone", cure=f"Did you mean --{token.replace('_', '-', 1)}?")
        at = tokens.index(token) if token in tokens else 0
        before = next((t for t in reversed(tokens[:at]) if t.startswith("--")), "")
        cure = f"{before} takes one value; options begin with --" if before else "Options begin with --, see --help"
        return InputError(f"{quoted(token)} stands alone", cure=cure)
    flags = [*(o.flag for o in known.values()), "--preset", "--help", "--help-all"]
    bare = name.lstrip("-").replace("_", "-")
    ends = [flag for flag in flags if flag.rpartition(".")[2] == bare or flag == f"--{bare}"]
    near = ends or _nearest(bare, flags)
    meant = f"Did you mean {' or '.join(near[:3])}? " if near else ""
    return InputError("there is no such option", field=name, cure=f"{meant}See --help-all for all options")


def _nearest(name: str, flags: Sequence[str]) -> list[str]:
    """The option most like a name, with its dots or by its last part."""
    whole = difflib.get_close_matches(f"--{name}", flags, 1, cutoff=0.6)
    if whole:
        return whole
    last = {flag.rpartition(".")[2].lstrip("-"): flag for flag in reversed(flags)}
    return [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], list(last), 1, cutoff=0.7)]


def help_text(
    presets: Mapping[str, Any], preset: str, options: Sequence[Option], description: str, *, full: bool
) -> str:
    """The help of a program: what it is, its presets, then one sentence an option, the basic ones or all."""
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH) - 1
    text = description.strip() if full else _beginning(description)
    bare = [option.metavar for option in options if option.positional]
    parser = argparse.ArgumentParser(
        prog=f"python {_script()}", add_help=False, allow_abbrev=False, description=text.replace("%", "%%"),
        usage=" ".join(["%(prog)s", *bare, "[--preset NAME]" if len(presets) > 1 else "", "[--OPTION VALUE ...]"]),
        formatter_class=lambda prog: _Layout(prog, max_help_position=32, width=width),
    )  # fmt: skip
    title = "all options" if full else "basic options (all of them: --help-all)"
    values = f"the value of preset '{preset}'" if len(presets) > 1 else "the default"
    groups = {"": parser.add_argument_group(f"{title}; in [brackets] {values}")}
    if len(presets) > 1:
        names = ", ".join(presets)
        groups[""].add_argument("--preset", metavar="NAME", help=f"Settings to begin with: {names}. [{preset}]")
    for option in options:
        head = option.path[0] if full and len(option.path) > 1 else ""
        if head not in groups:
            groups[head] = parser.add_argument_group(f"--{head.replace('_', '-')}", _about(option))
        text = _line(option).replace("%", "%%")
        if option.positional:
            groups[""].add_argument(option.name, metavar=option.metavar, help=text, nargs="?")
        else:
            count = "?" if option.item is bool else None
            groups[head].add_argument(option.flag, metavar=option.metavar, help=text, nargs=count)
    return "\n\n".join([parser.format_help().rstrip(), *_meanings(options, width)])


class _Layout(argparse.RawDescriptionHelpFormatter):
    """Names that hold hyphens stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _meanings(options: Sequence[Option], width: int) -> list[str]:
    """A paragraph for each kind of names that have meanings: the options that take them, and each name with its own."""
    flags: dict[OneOf, list[str]] = {}
    for option in options:
        if option.one_of is not None and option.one_of.meanings:
            flags.setdefault(option.one_of, []).append(option.flag)
    told = []
    for names, takers in flags.items():
        each = (f"{name} ({meaning})" for name, meaning in zip(names.names, names.meanings, strict=True))
        text = f"values of {', '.join(takers)}: {', '.join(each)}"
        told.append(textwrap.fill(text, width, break_on_hyphens=False))
    return told


def _about(option: Option) -> str | None:
    """The first sentence of a group's dataclass."""
    doc = " ".join((option.owner.__doc__ or "").split())
    return None if not doc or len(option.path) > 2 else doc.replace("%", "%%")


def _line(option: Option) -> str:
    explained = option.one_of is not None and option.one_of.meanings
    choices = f" One of: {', '.join(option.choices)}." if option.choices and not explained else ""
    value = option.default
    if isinstance(value, tuple):
        shown = " ".join(map(str, value))
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    if option.may_be_empty and option.default:
        choices += f" For none of them: {EMPTY}."
    default = f" [{shown}]" if shown not in ("", "None", "False") else ""
    return f"{option.help}{choices}{default}".strip()


def _beginning(description: str) -> str:
    """What a program is, how it is called and what it reads: the first paragraph, the first block of commands, and the
    paragraph that begins with "Data"."""
    first, *others = description.strip().split("\n\n")
    commands = [part for part in others[:2] if part.startswith("    python")][:1]
    return "\n\n".join([first, *commands, *(part for part in others if part.startswith("Data"))])


def _script() -> str:
    path = sys.argv[0] or "program"
    near = os.path.relpath(path) if os.path.isabs(path) else path
    return path if near.startswith("..") else near


def options_given(settings: Any, preset: Any) -> list[tuple[Option, Any]]:
    """The options in which settings differ from a preset's."""
    before = {o.path: o.default for o in options_of(preset)}
    return [(o, before.get(o.path)) for o in options_of(settings) if before.get(o.path) != o.default]


def as_arguments(option: Option) -> list[str]:
    """An option with its value as the command line takes it."""
    values = [str(v) for v in (option.default if option.is_list else (option.default,))]
    if not values and option.may_be_empty:
        values = [EMPTY]
    return values if option.positional else [option.flag, *values]
