"""Programs of models: what passes, what fails, and what they cannot do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.code_tests import CodeLimits, all_pass, code_of, passes

LIMITS = CodeLimits(seconds=1, memory_mib=256)
RIGHT = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nand `add(1, 2)` is 3."
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


@pytest.fixture(autouse=True, scope="module")
def runs() -> None:
    try:
        passes("", "", LIMITS)
    except InputError as error:
        pytest.skip(str(error))


def test_code_is_the_longest_fenced_block_or_all():
    assert code_of(RIGHT) == "def add(a, b):\n    return a + b\n"
    assert code_of("```\nx = 1\n```\n```py\nlonger = 12\n```") == "longer = 12\n"
    assert code_of("x = 1") == "x = 1"


@pytest.mark.parametrize(("response", "right"), [
    (RIGHT, True), (RIGHT.replace("+", "-"), False), ("def add(a, b:", False), ("", False),
    ("import math, re, collections\n" + code_of(RIGHT), True), ("print('x' * 10_000_000)\n" + code_of(RIGHT), True),
    ("raise SystemExit(0)", False), ("import os\nos._exit(0)", False), ("import os\nos._exit(10)", False),
    (code_of(RIGHT) + "\nif __name__ == '__main__':\n    add(input(), 1)", True),
])  # fmt: skip
def test_a_response_passes_where_its_tests_do(response, right):
    assert passes(response, TESTS, LIMITS) is right


@pytest.mark.parametrize("harm", [
    "while True: pass", "x = 'a' * 10**9", "import time\ntime.sleep(60)", "import os\nos.fork()",
    "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)", "import subprocess\nsubprocess.run(['true'])",
    "open('/tmp/fusion_jax_written', 'w')", "import os\nos.open('/tmp/fusion_jax_written', os.O_WRONLY | os.O_CREAT)",
    "import pathlib\npathlib.Path('/tmp/fusion_jax_written').touch()", "import socket\nsocket.socket()",
    "import ctypes\nctypes.CDLL(None)", "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
], ids=lambda text: text.split("\n")[-1][:30])  # fmt: skip
def test_harm_ends_the_program_and_nothing_else(harm, tmp_path):
    start = time.monotonic()
    assert not passes(harm, "", LIMITS)
    assert time.monotonic() - start < 20
    assert not (tmp_path.parent / "fusion_jax_written").exists()


def test_the_network_of_the_machine_is_out_of_reach():
    """Even past the audit hook, a connection to a server of this machine fails."""
    server = socket.create_server(("127.0.0.1", 0))
    reached: list[object] = []
    server.settimeout(8)

    def accept() -> None:
        with contextlib.suppress(TimeoutError):
            reached.append(server.accept())

    thread = threading.Thread(target=accept)
    thread.start()
    port = server.getsockname()[1]
    passes(f"import _socket\ns = _socket.socket()\ns.connect(('127.0.0.1', {port}))", "", LIMITS)
    thread.join()
    server.close()
    assert not reached


def test_many_are_run_side_by_side_in_order():
    assert all_pass([RIGHT, "nonsense(", RIGHT], [TESTS] * 3, LIMITS) == [True, False, True]
