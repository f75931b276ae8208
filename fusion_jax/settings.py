"""Settings: frozen dataclasses, presets, and the command line that every experiment shares.

An experiment calls `run(Settings, main, presets=...)`. The command line takes `--preset NAME`, then every field of the
dataclass as a dotted option. `--help` shows the basic ones, each with its sentence and the preset's value; `--help-all`
shows every one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fusion_jax.command_line import Given, read
from fusion_jax.errors import InputError
from fusion_jax.failures import INTERRUPTED, NothingToDo, failure_of, readable_streams, tell
from fusion_jax.hosts.signals import ending_together
from fusion_jax.options import LARGEST, as_option

S = TypeVar("S")


def parse(presets: Mapping[str, S], args: Sequence[str], *, description: str = "") -> S:
    """Command line to settings: the preset's values, overridden by the options given.

    Raises:
      InputError: an unknown option or preset, naming the nearest; a value of another type or out of its range.
    """
    return read(presets, args, description=description).settings


def run(
    settings: type[S],
    main: Callable[..., None],
    *,
    presets: Mapping[str, S] | None = None,
    description: str | None,
    args: Sequence[str] | None = None,
    beside: Any = None,
) -> None:
    """Parse the command line and run `main`. What is not a bug ends with one line on stderr: exit code 2 for bad input
    and faults of the disk, 1 for memory, 130 for Ctrl-C.

    Args:
      beside: a dataclass of options that are no settings; then `main` takes the settings, these options as given, and
        the preset's name.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its hints are for those who call it themselves
    given: Given[S] | None = None
    with ending_together(), readable_streams():
        try:
            given = read(
                presets if presets is not None else {"tiny": settings()}, sys.argv[1:] if args is None else args,
                description=description or "", beside=beside,
            )  # fmt: skip
            main(given.settings, *(() if beside is None else (given.beside, given.preset)))
        except NothingToDo:  # a notebook's cell that is run again goes on to the next one
            return
        except InputError as error:
            told = error if given is None else as_option(error, given.options, given.names)
            print(f"error: {told}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            resumable = given is not None and any(o.name == "resume" for o in given.options)
            goes_on = "; the same command with --resume goes on" if resumable else ""
            print(f"\nerror: interrupted{goes_on}.", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            failure = failure_of(error, [] if given is None else [o.name for o in given.options])
            if failure is None:
                raise
            tell(failure, error, _folder(given))
            raise SystemExit(failure.code) from None


def _folder(given: Given[Any] | None) -> str:
    """The run folder, where the settings name one that is a run's."""
    values = None if given is None else given.settings
    out = getattr(values, "work", "") or getattr(values, "out", "")
    return out if out and os.path.isfile(os.path.join(out, "config.json")) else ""


def bounded(
    settings: Any, *names: str, least: float | None = None, above: float = -math.inf, below: float = math.inf,
    most: float = math.inf,
) -> None:  # fmt: skip
    """Refuse numbers of a settings dataclass that are out of range; for its `__post_init__`.

    Raises:
      InputError: names the first field that is no number, not finite, less than `least`, not `above`, not `below` or
        more than `most`; a whole number is at most 2**31 - 1.
    """
    for name in names:
        value = getattr(settings, name)
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        inside = real and above < value < below and (least is None or value >= least) and value <= most
        if not inside or (isinstance(value, int) and value > LARGEST):
            lower = f"more than {above:g}" if least is None else f"{least:g} or more"
            upper = f" and at most {most:.10g}" if most < math.inf else f" and less than {below:g}"
            upper = "" if below == most == math.inf else upper
            raise InputError(f"{value} is out of range", field=name, cure=f"Give {lower}{upper}")


def seeded(settings: Any, *names: str) -> None:
    """Refuse seeds that are negative or that repeat smaller ones; for a `__post_init__`.

    Raises:
      InputError: names the first.
    """
    bounded(settings, *names, least=0, most=LARGEST)


def to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=_plain))


def with_defaults(stored: Any, settings: Any) -> Any:
    """Settings that an older version stored, with the default of each field that they lack and the dataclass has."""
    if not isinstance(stored, dict) or not dataclasses.is_dataclass(settings):
        return stored
    out = dict(stored)
    for field in dataclasses.fields(settings):
        if field.name in stored:
            out[field.name] = with_defaults(stored[field.name], getattr(settings, field.name))
        elif field.default is not dataclasses.MISSING:
            out[field.name] = json.loads(json.dumps(field.default, default=_plain))
        elif field.default_factory is not dataclasses.MISSING:
            out[field.name] = json.loads(json.dumps(field.default_factory(), default=_plain))
    return out


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return os.fspath(value) if isinstance(value, Path) else str(value)
