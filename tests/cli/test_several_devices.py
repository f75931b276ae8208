"""The command line on 8 virtual devices does what it does on one, and in-step references mean what stored ones do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from experiments import dpo
from fusion_jax.jsonl import read_jsonl
from tests.programs import Program
from tests.small import attempt, even_pairs, script, small_folder, virtual_devices, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


def options(tmp_path: Path, out: str, count: int, *more: str) -> list[str]:
    return [
        "--model", str(tmp_path / "model"), "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / out),
        "--train.batch-size", "8", "--train.mesh-tensor", "2" if count > 1 else "1", "--train.log-every", "1",
        "--train.eval-every", "3", *more,
    ]  # fmt: skip


def on_eight(words: list[str]) -> Program:
    """The command in a process with 8 devices."""
    return Program(script("dpo", *words), os.environ | virtual_devices(8) | {"JAX_PLATFORMS": "cpu"})


def prepared(path: Path) -> Path:
    """A folder with a model and pairs."""
    small_folder(path / "model", num_key_value_heads=2)
    write(path / "pairs.jsonl", even_pairs(44))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`prepared`, and the run on one device."""
    path = prepared(tmp_path_factory.mktemp("devices"))
    attempt(dpo, options(path, "one", 1))
    return path


@pytest.mark.parametrize(
    "out, devices, more",
    [pytest.param("eight", 8, [], marks=pytest.mark.slow), ("in-step", 1, ["--train.reference", "in-step"])],
)
def test_same_metrics(folder, out, devices, more):
    if devices == 1:
        attempt(dpo, options(folder, out, 1, *more))
    else:
        program = on_eight(options(folder, out, devices, *more))
        _, errors = program.communicate()
        assert program.returncode == 0, errors
    ours, one = (read_jsonl(folder / name / "metrics.jsonl") for name in (out, "one"))
    assert len(one) >= 6 and [r.keys() for r in ours] == [r.keys() for r in one]
    for a, b in zip(ours, one, strict=True):
        np.testing.assert_allclose([a[k] for k in b], list(b.values()), rtol=2e-3, atol=2e-5)


def test_a_micro_batch_that_does_not_divide_is_refused(tmp_path):
    program = on_eight(options(prepared(tmp_path), "odd", 8, "--train.micro-batches", "4"))
    _, errors = program.communicate()
    assert program.returncode == 2 and "a micro-batch of 2 examples does not divide over 4 devices" in errors
