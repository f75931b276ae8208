"""Shared by all tests: golden files, float64 where a test asks for it, quiet offline libraries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
