"""A chat server on the loopback that answers as a test says, also wrongly."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What is sent. pieces: of the body, each behind a pause in seconds."""

    pieces: list[bytes]
    code: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    pause: float = 0.0
    length: int | None = None  # what Content-Length says, if not the body's own
    dropped: bool = False  # the connection is closed without a word


def chat(text: str, **more: Any) -> Response:
    """A right reply. more: of the choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return Response([json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()])


def refusal(code: int, message: str = "no", **headers: str) -> Response:
    return Response(
        [json.dumps({"error": {"message": message}}).encode()],
        code,
        {k.replace("_", "-"): v for k, v in headers.items()},
    )


@dataclass
class Log:
    """What a server was asked."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def asked(self) -> Counter[str]:
        """How often each question was asked."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)


@contextmanager
def serving(answer: Callable[[str, int], Response]) -> Iterator[Log]:
    """A server for as long as the block lasts.

    Args:
      answer: (question, how often it was asked before) -> what is sent.
    """
    log, lock = Log(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["messages"][-1]["content"]
            with lock:
                before = log.asked()[asked]
                log.bodies.append(body | {"path": self.path})
                log.headers.append(dict(self.headers))
                log.times.append(time.monotonic())
                log.at_once += 1
                log.most_at_once = max(log.most_at_once, log.at_once)
            try:
                self.send(answer(asked, before))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    log.at_once -= 1

        def send(self, response: Response) -> None:
            if response.dropped:
                self.close_connection = True
                return
            self.send_response(response.code)
            length = sum(map(len, response.pieces)) if response.length is None else response.length
            for name, value in {**response.headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in response.pieces:
                time.sleep(response.pause)
                self.wfile.write(piece)
                self.wfile.flush()
            self.close_connection = response.length is not None

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    log.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
