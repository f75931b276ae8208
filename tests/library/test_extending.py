"""The examples of docs/extending.md, run as they stand there."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models import families
from fusion_jax.train.objective import Progress
from tests.small import ROOT, small_folder

pytestmark = pytest.mark.usefixtures("quick_compiler")


def example(name: str) -> str:
    """The code behind a marker of the page."""
    page = (Path(ROOT) / "docs/extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", page, re.DOTALL)
    return code


def run(name: str, **known: Any) -> dict[str, Any]:
    """The names that an example defines."""
    exec(compile(example(name), f"docs/extending.md, {name}", "exec"), known)
    return known


def test_a_loss_of_ones_own_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("training", margin=run("objective")["margin"])
    logged = read_jsonl(tmp_path / "runs/margin/metrics.jsonl")
    assert len(logged) == 20 and logged[0]["loss"] > 0.5 and logged[-1]["loss"] < 0.1
    assert logged[-1]["margin"] > logged[0]["margin"]


def test_the_loss_is_the_formula():
    margin = run("objective")["margin"](2.0)
    sequence, weights = jax.numpy.asarray([[-1.0, -2.5], [-4.0, -1.0]]), jax.numpy.asarray([1.0, 1.0])
    scores = types.SimpleNamespace(sequence=sequence, weights=weights)
    loss, metrics = margin.loss(scores, Progress(0, 1))
    np.testing.assert_allclose(fj.losses.divide(loss), (0.5 + 5.0) / 2)
    np.testing.assert_allclose(fj.losses.divide(metrics["margin"]), (1.5 - 3.0) / 2)


def test_a_family_of_ones_own_reads_and_writes_its_files(tmp_path, monkeypatch):
    module = types.ModuleType("toy")
    module.__dict__.update(run("family"))
    small_folder(tmp_path / "llama")
    wanted = fj.logits(fj.load(tmp_path / "llama"), jax.numpy.asarray([[1, 2, 3]]))
    values = json.loads((tmp_path / "llama/config.json").read_text())
    (tmp_path / "llama/config.json").write_text(json.dumps({**values, "model_type": "toy", "architectures": None}))
    with pytest.raises(InputError, match="'toy' is not supported"):
        fj.load(tmp_path / "llama")
    monkeypatch.setitem(families.FAMILIES, "toy", module)
    with pytest.raises(InputError, match=r"model\.blocks\.0"):
        fj.load(tmp_path / "llama")
    rename(tmp_path / "llama/model.safetensors")
    toy = fj.load(tmp_path / "llama")
    np.testing.assert_array_equal(fj.logits(toy, jax.numpy.asarray([[1, 2, 3]])), wanted)
    fj.save(toy, tmp_path / "toy")
    again = fj.load(tmp_path / "toy")
    np.testing.assert_array_equal(fj.logits(again, jax.numpy.asarray([[1, 2, 3]])), wanted)


def rename(file: Path) -> None:
    """The tensors under the family's names, with one that is no weight."""
    from safetensors.numpy import load_file, save_file

    tensors = {name.replace("model.layers.", "model.blocks."): value for name, value in load_file(file).items()}
    save_file(tensors | {"model.blocks.0.attention.cache": np.zeros(3, np.float32)}, file)
