"""Renders chat templates in a process of its own: a template is a program that came with a checkpoint.

The process has bounded processor time and memory, so that a template that loops or grows ends here and not in the run.
It reads a line of JSON, a list of requests, and answers it with a line, a list of {"text": ...} or {"error": ...}. It
imports nothing of this package; jinja2 is set up as transformers sets it up, so that sane templates give the same text.

Only `fusion_jax.data.templates` starts it.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import resource
import signal
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 28  # bytes of address space beside what the request itself needs
PER_BYTE = 48  # bytes of address space for each byte of a request
SECONDS = 1.0  # of processor time beside what the request itself needs
SECONDS_PER_BYTE = 2e-7


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("rendered"), [], [], body).set_lineno(line)

    def rendered(self, caller: Any) -> str:
        return caller()


class Dict:
    """`dict` in templates: builds dictionaries and has no other attributes to reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class Namespace(jinja2.utils.Namespace):
    """`namespace` in templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no name of its own, so that `namespace(self=...)` works
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _allowed(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: Any, value: Any) -> None:
        _allowed(name)
        super().__setitem__(name, value)


def _allowed(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:  # noqa: E501  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(16)
def compiled(source: str, day: str) -> jinja2.Template:
    """A template whose clock stands at `day` (ISO)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise, "strftime_now": datetime.datetime.fromisoformat(day).strftime, "dict": Dict(),
        "namespace": Namespace,
    }  # fmt: skip
    return environment.from_string(source)


def render(request: dict[str, Any]) -> str:
    """The text of a request; ValueError if it grows beyond `longest` characters."""
    parts, size = [], 0
    for part in compiled(request["template"], request["day"]).generate(**request["variables"]):
        parts.append(part)
        size += len(part)
        if size > request["longest"]:
            raise ValueError(f"its output grows beyond {request['longest']} characters")
    return "".join(parts)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """What to reply to one request."""
    try:
        return {"text": render(request)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it calls itself too deeply"}
    except Exception as error:
        return {"error": str(error)[:1000] or type(error).__name__}


def answers(line: str) -> list[dict[str, str]]:
    """What to reply to a line. The kernel ends the process (SIGPROF) when its processor time is used up."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = MEMORY + PER_BYTE * len(line)
    with contextlib.suppress(ValueError, OSError):  # a system without this limit, or with a lower one
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS + SECONDS_PER_BYTE * len(line))
    try:
        return [answer(request) for request in json.loads(line)]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answers(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
