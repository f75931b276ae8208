"""A server that speaks the OpenAI chat API as an answerer: vLLM, llama.cpp's server, a hosted one.

Requests are posted side by side. What passes (429, 5xx, a lost connection, a time limit, a body that is cut short or no
JSON) is tried again after waits that grow; what remains is a `Failure`, counted by its reason. What concerns every
question stops everything with one error: a key that is refused, an address that is not there, a redirect, a server that
does not answer any more, or that has never given a reply.
"""

from __future__ import annotations

import asyncio
import email.utils
import queue
import random
import re
import threading
import time
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fusion_jax.asking import wire
from fusion_jax.asking.contract import Decoding, Failure, Outcome, Question, Reply
from fusion_jax.asking.key import Key
from fusion_jax.errors import InputError, one_line, quoted
from fusion_jax.settings import bounded

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST = 300  # characters of what a server says of a failure
AGAIN = (408, 409, 425, 429, *range(500, 600))  # codes that may pass
FEW = 3  # questions, of which all may fail for their own sake


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
        if not re.fullmatch(r"([A-Za-z_]\w*)?", self.key_variable, re.ASCII):  # it may be the key: it is not quoted
            problem, cure = "is no name of an environment variable", "export NAME=KEY, and give NAME, not the key"
            raise InputError(problem, field="key_variable", cure=cure)


class _Passing(Exception):
    """What went wrong with a request and may pass. wait: seconds that the server asks for."""

    def __init__(self, failure: Failure, wait: float = 0.0) -> None:
        super().__init__(failure.reason)
        self.failure, self.wait = failure, wait


@dataclass(frozen=True)
class Server:
    """A model behind the OpenAI chat API.

    url: what stands before `/chat/completions`, for instance http://127.0.0.1:8000/v1. name: the model's, as the server
    calls it. most_characters: of a question that fits; 0: all. options: what stands before the names of these settings
    on a command line, for messages.

    Raises:
      InputError: an address that is none, or that holds a password; a key that is not there.
    """

    url: str
    name: str
    transport: Transport = Transport()
    most_characters: int = 0
    options: str = field(default="--", repr=False, compare=False)
    key: Key = field(init=False, repr=False, compare=False)
    together: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_url(self.url, self.options)
        if not self.name:
            cure = "Name the model as the server calls it"
            raise InputError("is missing", field=f"{self.options}served", cure=cure)
        object.__setattr__(self, "url", self.url.rstrip("/"))
        key = Key.of(self.transport.key_variable, f"{self.options}transport.key-variable")
        object.__setattr__(self, "key", key)

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
                number, outcome, taken = one
                yield number, outcome
                task.soon(taken.set)  # what is told is in the log by now
        finally:
            task.stop()
            thread.join()

    def failure(self, reason: str, said: str = "") -> Failure:
        """A failure without the key, which is hidden before what the server said is cut."""
        return Failure(reason, one_line(self.key.hidden(said), LONGEST))

    def error(self, problem: str, cure: str, option: str | None = "server") -> InputError:
        """An error without the key. option: the one that it is about."""
        named = None if option is None else f"{self.options}{option}"
        return InputError(self.key.hidden(problem), file=self.url, field=named, cure=cure)


def check_url(url: str, options: str = "--") -> None:
    """Refuse an address that is none, and one that holds a password or a query. options: as of `Server`."""
    try:
        parts = urllib.parse.urlsplit(url)
        there = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        there = False
    if "@" in url or "?" in url or "#" in url:
        cure = f"Give http://HOST:PORT/v1, and a key by {options}transport.key-variable"
        raise InputError("the address holds a name, a password or a query", field=f"{options}server", cure=cure)
    if not there or not url.isprintable() or " " in url:
        raise InputError(f"{quoted(url)} is no address", field=f"{options}server", cure="Give http://HOST:PORT/v1")


class _Task:
    """The questions of one call, asked by an event loop in a thread of its own, so that every time limit holds whatever
    the server does, and a notebook's own loop is not in the way.

    tell: takes (number, outcome, event) triples, an error, then None. No worker asks on before its event is set, so
      that a kill loses no more replies than there are workers.
    """

    def __init__(
        self, server: Server, questions: Sequence[Question], decoding: Decoding, tell: Callable[[Any], None]
    ) -> None:
        self.server, self.questions, self.decoding, self.tell = server, questions, decoding, tell
        self.numbers, self.lost, self.replied, self.reasons = iter(range(len(questions))), 0, False, set[str]()
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
        place, said = traceback.extract_tb(error.__traceback__)[-1], one_line(self.server.key.hidden(str(error)))
        where = f"{place.filename}, line {place.lineno}"
        return RuntimeError(f"asking the server failed: {type(error).__name__} {said} ({where})")

    def stop(self) -> None:
        """End what is under way; called by another thread."""
        self.stopped.set()
        self.soon(lambda: self.work.cancel() if self.work is not None else None)

    def soon(self, what: Callable[[], object]) -> None:
        """Do something in the loop, if it has not ended; called by another thread."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what)

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
            self._count(outcome, answered)
            taken = asyncio.Event()
            self.tell((number, outcome, taken))
            await taken.wait()

    def _count(self, outcome: Outcome, answered: bool) -> None:
        """Give a server up that does not answer any more, or that has never given a reply, whatever else it says. Where
        all questions failed alike, and none was refused for its own sake, fewer of them are enough."""
        self.replied = self.replied or isinstance(outcome, Reply)
        self.lost = 0 if isinstance(outcome, Reply) or (answered and self.replied) else self.lost + 1
        most = self.server.transport.give_up
        if isinstance(outcome, Failure):
            self.reasons.add("refused" if answered and outcome.reason.startswith("HTTP") else outcome.reason)
        if not self.replied and len(self.reasons) == 1 and "refused" not in self.reasons:
            most = min(most, max(len(self.questions), FEW))
        if isinstance(outcome, Failure) and self.lost >= most:
            raise self.server.error(
                f"the server gives no reply: {self.lost} questions in a row failed, the last one with "
                f"{outcome.reason} ({outcome.detail})",
                "Look at the server; the same command with --resume goes on. If these questions alone fail, raise "
                f"{self.server.options}transport.give-up",
            )

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
        most = min(how.request_seconds, seconds)
        sent = wire.body(server.name, question, self.decoding, how.tokens_field)
        try:
            async with (
                asyncio.timeout(max(most, 0.0)),
                client.stream("POST", f"{server.url}/chat/completions", json=sent) as response,
            ):
                kind, code = response.headers.get("content-type", ""), response.status_code
                self._check_headers(response)
                raw = await self._body(response)
        except TimeoutError:
            raise _Passing(server.failure("timeout", f"no whole reply in {most:g} s")) from None
        except httpx2.TransportError as error:
            raise _Passing(server.failure("connection", str(error) or type(error).__name__)) from None
        if code != 200:
            return self._refused(code, response.headers, raw)
        if "text/event-stream" in kind:
            raise _Passing(server.failure("a stream, not a reply", kind))
        try:
            return wire.reply(raw, server.key)
        except InputError as error:
            reason = "reply that is no JSON" if error.field is None else "reply of another shape"
            said = f"{error.field}: {error.problem}" if error.field else f"{error.problem}, {kind or 'of no type'}"
            raise _Passing(server.failure(reason, said)) from None

    def _check_headers(self, response: Any) -> None:
        """Refuse redirects, and bodies that would have to be unpacked."""
        if 300 <= response.status_code < 400:
            where = response.headers.get("location", "nowhere")
            raise self.server.error(
                f"the server sends on to {where}, and no redirect is followed",
                "Give the address that answers, if it can be trusted",
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Passing(self.server.failure("reply that is packed", response.headers["content-encoding"]))

    async def _body(self, response: Any) -> bytes:
        """The body, up to the largest size."""
        raw, most = bytearray(), self.server.transport.largest_reply
        async for chunk in response.aiter_raw():
            raw += chunk
            if len(raw) > most:
                raise _Passing(self.server.failure("reply that is too large", f"more than {most} bytes"))
        return bytes(raw)

    def _refused(self, code: int, headers: Any, raw: bytes) -> Failure:
        """What another code than 200 means.

        Raises:
          _Passing, InputError: as `_request`.
        """
        server, said = self.server, self.server.failure(f"HTTP {code}", wire.complaint(raw, self.server.key))
        if code in AGAIN:
            raise _Passing(said, retry_after(headers.get("retry-after", "")))
        if code in (401, 403):
            named = server.transport.key_variable
            cure = f"Check the key in {named}" if named else f"Give {server.options}transport.key-variable NAME"
            raise server.error(f"the server refuses the key ({said.reason}: {said.detail})", cure, None)
        if code in (404, 405):
            raise server.error(
                f"there is no such address or model ({said.reason}: {said.detail})",
                "Check the address, which is what stands before /chat/completions, and the model's name",
            )
        return said


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
