"""Settings: frozen dataclasses, presets, and the command line that every experiment shares.

An experiment calls `run(Settings, main, presets=...)`. The command line takes `--preset NAME`, then every field of the
dataclass as a dotted option; `--help` lists them with the preset's values as defaults, behind what the docstrings of
the experiment and of its dataclass say.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from fusion_jax.errors import InputError
from fusion_jax.hosts import ending_together

S = TypeVar("S")

_DISK = {
    errno.ENOSPC: "the disk is full; free space or choose another --out",
    errno.ENOENT: "cannot be made there; choose another --out",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "no permission; choose another --out or change the folder's rights",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another --out",
    errno.EDQUOT: "the disk quota is used up; free space or choose another --out",
}


def parse(settings: type[S], presets: Mapping[str, S], args: Sequence[str], *, description: str) -> S:
    """Command line to settings: the preset's values, overridden by the options given.

    Raises:
      InputError: an unknown preset. Unknown options end the program with the nearest names (tyro).
    """
    args = list(args)
    name = next(iter(presets))
    for i, arg in enumerate(args):
        if arg == "--preset" or arg.startswith("--preset="):
            name = arg.partition("=")[2] if "=" in arg else (args[i + 1] if i + 1 < len(args) else "")
            del args[i : i + (1 if "=" in arg else 2)]
            break
    if name not in presets:
        raise InputError(f"no preset is called '{name}'", field="--preset", cure=f"Choose one of {', '.join(presets)}")
    choices = f"Presets: --preset {{{', '.join(presets)}}} (now {name})."
    header = "\n\n".join([description.strip(), inspect.getdoc(settings) or "", choices])
    return tyro.cli(
        settings, default=presets[name], args=args, description=header, config=(tyro.conf.FlagConversionOff,)
    )


def run(
    settings: type[S],
    main: Callable[[S], None],
    *,
    presets: Mapping[str, S] | None = None,
    description: str | None,
    args: Sequence[str] | None = None,
) -> None:
    """Parse the command line and run `main`; bad input and disk faults end with one clear line and exit code 2."""
    with ending_together():
        try:
            main(
                parse(
                    settings,
                    presets if presets is not None else {"tiny": settings()},
                    sys.argv[1:] if args is None else args,
                    description=description or "",
                )
            )
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except OSError as error:
            if error.errno not in _DISK:
                raise
            print(f"error: {error.filename or 'writing'}: {_DISK[error.errno]}.", file=sys.stderr, flush=True)
            raise SystemExit(2) from None


def bounded(
    settings: Any, *names: str, least: float | None = None, above: float = -math.inf, below: float = math.inf
) -> None:
    """Refuse numbers of a settings dataclass that are out of range; for its `__post_init__`.

    Raises:
      InputError: names the first field that is not finite, less than `least`, not `above` or not `below`.
    """
    for name in names:
        value = getattr(settings, name)
        if not (above < value < below and (least is None or value >= least)):
            lower = f"more than {above:g}" if least is None else f"{least:g} or more"
            upper = "" if below == math.inf else f" and less than {below:g}"
            raise InputError(f"{value} is out of range", field=name, cure=f"Give {lower}{upper}")


def to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=_plain))


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, Path) else str(value)
