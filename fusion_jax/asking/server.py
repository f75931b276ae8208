"""A server that speaks the OpenAI chat API as an answerer: vLLM, llama.cpp's server, a hosted one.

Requests are posted side by side. What passes (429, 5xx, a lost connection, a time limit, a body that is cut short or no
JSON) is tried again after waits that grow; what remains is a `Failure`, counted by its reason. What concerns every
question stops everything with one error: a key that is refused, an address that is not there, a redirect, a server that
does not answer any more.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import queue
import random
import threading
import time
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fusion_jax.asking import wire
from fusion_jax.asking.contract import Decoding, Failure, Outcome, Question
from fusion_jax.errors import InputError, one_line, quoted
from fusion_jax.settings import bounded

LOOPBACK = ("localhost", "127.0.0.1", "::1")
AGAIN = (408, 409, 425, 429, *range(500, 600))  # codes that may pass
HIDDEN = "***"


@dataclass(frozen=True)
class Transport:
    """How a server is asked; none of it decides a reply."""

    key_variable: str = ""
    """Environment variable with the server's key; without, none is sent."""
    concurrency: int = 8
    """Requests side by side."""
    retries: int = 5
    """How often a request is tried again."""
    first_wait: float = 1.0
    """Seconds before the first of these; every next one waits twice as long."""
    longest_wait: float = 60.0
    """Seconds of the longest wait, also where the server asks for a longer one."""
    request_seconds: float = 120.0
    """Longest time of one request, from the connection to the reply's last byte."""
    question_seconds: float = 900.0
    """Longest time of a question, with all that is tried again and the waits."""
    largest_reply: int = 4 << 20
    """Bytes of the largest body that is read."""
    give_up: int = 20
    """Questions that fail one after another because the server does not answer before the run stops."""
    tokens_field: wire.TokensField = "max_tokens"
    """Field that limits a reply; some hosted models take only the newer one."""

    def __post_init__(self) -> None:
        bounded(self, "concurrency", "give_up", least=1)
        bounded(self, "concurrency", most=1024)
        bounded(self, "retries", least=0, most=100)
        bounded(self, "first_wait", "longest_wait", least=0)
        bounded(self, "request_seconds", "question_seconds", above=0)
        bounded(self, "largest_reply", least=1024)


class Key(NamedTuple):
    """A secret: no text that is made of it shows it."""

    secret: Callable[[], str] = lambda: ""

    def __repr__(self) -> str:
        return f"Key({HIDDEN})"

    @classmethod
    def of(cls, variable: str) -> Key:
        """The key in an environment variable; none where no variable is named.

        Raises:
          InputError: the variable is not set, or holds what no header can.
        """
        if not variable:
            return cls()
        found = os.environ.get(variable, "").strip()
        if not found:
            raise InputError(f"{variable} is not set or empty", field="key_variable", cure=f"export {variable}=KEY")
        if len(found) < 4 or not found.isascii() or not found.isprintable() or " " in found:
            raise InputError(
                f"what {variable} holds is no key", field="key_variable",
                cure="Set it to the key alone: 4 characters at least, ASCII, without spaces",
            )  # fmt: skip
        return cls(lambda: found)

    def hidden(self, text: str) -> str:
        """A text without the key."""
        return text.replace(secret, HIDDEN) if (secret := self.secret()) else text


class _Passing(Exception):
    """What went wrong with a request and may pass. wait: seconds that the server asks for."""

    def __init__(self, reason: str, detail: str = "", wait: float = 0.0) -> None:
        super().__init__(reason)
        self.failure, self.wait = Failure(reason, detail), wait


@dataclass(frozen=True)
class Server:
    """A model behind the OpenAI chat API.

    url: what stands before `/chat/completions`, for instance http://127.0.0.1:8000/v1. name: the model's, as the server
    calls it. most_characters: of a question that fits; 0: all.

    Raises:
      InputError: an address that is none, or that holds a password; a key that is not there.
    """

    url: str
    name: str
    transport: Transport = Transport()
    most_characters: int = 0
    key: Key = field(init=False, repr=False, compare=False)
    together: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        if not self.name:
            raise InputError("is missing", field="served", cure="Name the model as the server calls it")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        object.__setattr__(self, "key", Key.of(self.transport.key_variable))

    @property
    def identity(self) -> str:
        return f"{self.name} at {self.url}"

    def fits(self, question: Question, decoding: Decoding) -> bool:
        """By characters: the server's tokens are not known here."""
        return not self.most_characters or sum(len(m.content) for m in question.messages) <= self.most_characters

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[tuple[int, Outcome]]:
        told: queue.Queue[Any] = queue.Queue()
        task = _Task(self, questions, decoding, told.put)
        thread = threading.Thread(target=task.run, daemon=True, name=f"asking {self.name}")
        thread.start()
        try:
            while (one := told.get()) is not None:
                if isinstance(one, BaseException):
                    raise one from None
                yield one
        finally:
            task.stop()
            thread.join()


def check_url(url: str) -> None:
    """Refuse an address that is none, and one that holds a password or a query."""
    try:
        parts = urllib.parse.urlsplit(url)
        there = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        there = False
    if "@" in url or "?" in url or "#" in url:
        cure = "Give http://HOST:PORT/v1, and a key by --transport.key-variable"
        raise InputError("the address holds a name, a password or a query", field="server", cure=cure)
    if not there or not url.isprintable() or " " in url:
        raise InputError(f"{quoted(url)} is no address", field="server", cure="Give http://HOST:PORT/v1")


class _Task:
    """The questions of one call, asked by an event loop in a thread of its own, so that every time limit holds whatever
    the server does, and a notebook's own loop is not in the way.

    tell: takes (number, outcome) pairs, an error, then None.
    """

    def __init__(
        self, server: Server, questions: Sequence[Question], decoding: Decoding, tell: Callable[[Any], None]
    ) -> None:
        self.server, self.questions, self.decoding, self.tell = server, questions, decoding, tell
        self.numbers, self.silent = iter(range(len(questions))), 0
        self.loop = asyncio.new_event_loop()
        self.work: asyncio.Task[None] | None = None
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            if not self.stopped.is_set():
                self.work = self.loop.create_task(self._all())
                self.loop.run_until_complete(self.work)
        except asyncio.CancelledError:
            pass
        except InputError as error:
            self.tell(_plain(error))
        except BaseException as error:
            self.tell(self._unexpected(error))
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.tell(None)

    def _unexpected(self, error: BaseException) -> RuntimeError:
        """A bug's kind and place, without the traceback, whose frames hold requests."""
        place, said = traceback.extract_tb(error.__traceback__)[-1], self.server.key.hidden(one_line(str(error)))
        where = f"{place.filename}, line {place.lineno}"
        return RuntimeError(f"asking the server failed: {type(error).__name__} {said} ({where})")

    def stop(self) -> None:
        """End what is under way; called by another thread."""
        self.stopped.set()
        try:
            self.loop.call_soon_threadsafe(lambda: self.work.cancel() if self.work is not None else None)
        except RuntimeError:  # it has ended
            return

    async def _all(self) -> None:
        how = self.server.transport
        async with _client(self.server) as client:
            workers = [
                asyncio.create_task(self._worker(client)) for _ in range(min(how.concurrency, len(self.questions)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _worker(self, client: Any) -> None:
        for number in self.numbers:
            outcome, answered = await self._question(client, self.questions[number])
            self.silent = 0 if answered else self.silent + 1
            if self.silent >= self.server.transport.give_up:
                assert isinstance(outcome, Failure)
                raise InputError(
                    f"the server does not answer: {self.silent} questions in a row failed, the last one with "
                    f"{outcome.reason} ({outcome.detail})", file=self.server.url, field="server",
                    cure="Look at the server; the same command with --resume goes on",
                )  # fmt: skip
            self.tell((number, outcome))

    async def _question(self, client: Any, question: Question) -> tuple[Outcome, bool]:
        """The outcome, and whether the server answered at all."""
        how, wait = self.server.transport, self.server.transport.first_wait
        last, end = Failure("timeout"), time.monotonic() + how.question_seconds
        for attempt in range(how.retries + 1):
            try:
                return await self._request(client, question, end - time.monotonic()), True
            except _Passing as error:
                last = error.failure
                pause = min(error.wait or wait * random.uniform(0.5, 1.0), how.longest_wait)
            wait = min(2 * wait, how.longest_wait)
            if attempt == how.retries or time.monotonic() + pause >= end:
                break
            await asyncio.sleep(pause)
        return last, not last.reason.startswith(("connection", "timeout", "HTTP"))

    async def _request(self, client: Any, question: Question, seconds: float) -> Outcome:
        """One request.

        Raises:
          _Passing: it may succeed when it is tried again.
          InputError: no question will be answered.
        """
        import httpx2

        server, how = self.server, self.server.transport
        sent = wire.body(server.name, question, self.decoding, how.tokens_field)
        try:
            async with (
                asyncio.timeout(max(min(how.request_seconds, seconds), 0.0)),
                client.stream("POST", f"{server.url}/chat/completions", json=sent) as response,
            ):
                kind, code = response.headers.get("content-type", ""), response.status_code
                self._check_headers(response)
                raw = await self._body(response)
        except TimeoutError:
            raise _Passing("timeout", f"no whole reply in {min(how.request_seconds, seconds):g} s") from None
        except httpx2.TransportError as error:
            detail = server.key.hidden(one_line(str(error) or type(error).__name__, 200))
            raise _Passing("connection", detail) from None
        if code != 200:
            return self._refused(code, response.headers, raw)
        if "text/event-stream" in kind:
            raise _Passing("a stream, not a reply", kind)
        try:
            return wire.reply(raw, server.key.hidden)
        except InputError as error:
            shape = error.field is not None
            raise _Passing("reply of another shape" if shape else "reply that is no JSON", self._told(error)) from None

    def _check_headers(self, response: Any) -> None:
        """Refuse redirects, and bodies that would have to be unpacked."""
        if 300 <= response.status_code < 400:
            where = one_line(self.server.key.hidden(response.headers.get("location", "nowhere")), 200)
            raise InputError(
                f"the server sends on to {where}, and no redirect is followed", file=self.server.url, field="server",
                cure="Give the address that answers, if it can be trusted",
            )  # fmt: skip
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Passing("reply that is packed", response.headers["content-encoding"][:80])

    async def _body(self, response: Any) -> bytes:
        """The body, up to the largest size."""
        raw, most = bytearray(), self.server.transport.largest_reply
        async for chunk in response.aiter_raw():
            raw += chunk
            if len(raw) > most:
                raise _Passing("reply that is too large", f"more than {most} bytes")
        return bytes(raw)

    def _refused(self, code: int, headers: Any, raw: bytes) -> Failure:
        """What another code than 200 means.

        Raises:
          _Passing, InputError: as `_request`.
        """
        said = one_line(self.server.key.hidden(wire.complaint(raw)), 300)
        if code in AGAIN:
            raise _Passing(f"HTTP {code}", said, retry_after(headers.get("retry-after", "")))
        if code in (401, 403):
            named = self.server.transport.key_variable
            cure = f"Check the key in {named}" if named else "Give --transport.key-variable NAME"
            raise InputError(f"the server refuses the key (HTTP {code}: {said})", file=self.server.url, cure=cure)
        if code in (404, 405):
            raise InputError(
                f"there is no such address or model (HTTP {code}: {said})", file=self.server.url, field="server",
                cure="Check the address, which is what stands before /chat/completions, and the model's name",
            )  # fmt: skip
        return Failure(f"HTTP {code}", said)

    def _told(self, error: InputError) -> str:
        place = f"{error.field}: " if error.field else ""
        return self.server.key.hidden(f"{place}{error.problem}")


@asynccontextmanager
async def _client(server: Server) -> AsyncIterator[Any]:
    """Connections to the server; a server on this machine is asked without a proxy."""
    import httpx2

    host = urllib.parse.urlsplit(server.url).hostname
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if secret := server.key.secret():
        headers["Authorization"] = f"Bearer {secret}"
    most = server.transport.concurrency
    async with httpx2.AsyncClient(
        headers=headers, follow_redirects=False, timeout=None, trust_env=host not in LOOPBACK,
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
    ) as client:  # fmt: skip
        yield client


def retry_after(text: str) -> float:
    """Seconds that a header asks to wait, as a number or as a date; 0 where it says neither.

    >>> retry_after("2.5"), retry_after("soon")
    (2.5, 0.0)
    """
    try:
        return max(float(text), 0.0) if text.strip().replace(".", "", 1).isdecimal() else _until(text)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _until(date: str) -> float:
    return max(email.utils.parsedate_to_datetime(date).timestamp() - time.time(), 0.0)


def _plain(error: InputError) -> InputError:
    """The same error without what led to it, whose frames hold requests."""
    return InputError(
        error.problem, file=error.file, record=error.record, field=error.field, cure=error.cure
    )  # fmt: skip
