"""Chat templates rendered within bounds of time, memory and output (see `template_worker`)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SPARE = 1_000_000  # characters that a template may write beside eight times what it is given


class TemplateError(Exception):
    """A template did not give a text; the message says why, a clause."""


def template_request(template: str, variables: Mapping[str, Any], *, day: str) -> str:
    """What to render, as `render_request` reads it.

    Args:
      variables: JSON values; "messages" among them.
      day: ISO date that `strftime_now` tells, so that a run can be repeated.
    """
    size = len(template) + sum(len(m.get("content") or "") for m in variables.get("messages", ()))
    return json.dumps(
        {"template": template, "variables": dict(variables), "day": day, "longest": SPARE + 8 * size}, sort_keys=True
    )


def render_request(request: str) -> str:
    """The text that a Jinja chat template makes of its variables, as transformers renders it but for the clock.

    Raises:
      TemplateError: the template raises; it computes, grows or writes without bounds.
    """
    return _worker(os.getpid()).text(request)


def render_ahead(requests: Sequence[str]) -> None:
    """Render many texts in one exchange, for `render_request` to find; only the last call's are kept."""
    _worker(os.getpid()).render_ahead(requests)


@functools.cache
def _worker(pid: int) -> _Worker:
    """The worker of this process; one that forked needs another."""
    return _Worker()


class _Worker:
    """The process that renders, started when it is needed and again after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._ready: dict[str, dict[str, str]] = {}
        atexit.register(self._end)

    def text(self, request: str) -> str:
        reply = self._ready.get(request)
        if reply is None:
            with self._lock:
                reply = json.loads(self._exchange(f"[{request}]"))[0]
        if "text" not in reply:
            raise TemplateError(reply["error"])
        return reply["text"]

    def render_ahead(self, requests: Sequence[str]) -> None:
        new = list(dict.fromkeys(requests))
        with self._lock:
            try:
                replies = json.loads(self._exchange(f"[{','.join(new)}]"))
            except TemplateError:  # one of them; rendered alone it will tell why
                replies = []
            self._ready = dict(zip(new, replies))

    def _exchange(self, request: str) -> str:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        line = ""
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            pass
        except BaseException:  # an interrupted exchange would leave its reply to the next one
            self._end()
            raise
        if line.endswith("\n"):
            return line
        code = process.wait()
        self._end()
        if code == -signal.SIGPROF:
            raise TemplateError("it computes without an end")
        raise TemplateError(f"it ends the process that renders it (exit status {code})")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
