"""Shared by all tests: golden files, float64 where a test asks for it, quiet offline libraries, one compilation cache.

Most of the time goes into compiling the same programs in one process after another: all of them share what they
compiled.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fusion-jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

GOLDEN = Path(__file__).parent / "golden"


def golden_cases(name: str, kind: str) -> list[dict[str, Any]]:
    """The cases of one kind of a golden file."""
    cases = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    found = [case for case in cases if case["kind"] == kind]
    assert found, f"{name}.json has no case of kind {kind}"
    return found


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 inside the test."""
    with jax.enable_x64(True):
        yield
