"""Distillation as a user runs it: every loss, stored and live teachers, the student's own vocabulary and others."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import distil
from experiments.sweeps.files import EXPERIMENTS, read_sweep
from fusion_jax.jsonl import read_jsonl
from fusion_jax.zoo import model_path
from tests.programs import Program
from tests.small import attempt, fails, pairs, script, virtual_devices, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Chats, held-out chats, texts, and a copy of the student as a teacher with its vocabulary."""
    path = tmp_path_factory.mktemp("data")
    turns = [{"prompt": p["prompt"], "response": p["chosen"]} for p in pairs(16)]
    write(path / "chats.jsonl", turns)
    write(path / "held.jsonl", turns[:6])
    write(path / "texts.jsonl", [{"text": f"{t['prompt']}\n{t['response']}"} for t in turns])
    shutil.copytree(model_path("zoo:target"), path / "teacher")
    return path


def arguments(folder, out, *more):
    return [
        "--out", str(out), "--chats", str(folder / "chats.jsonl"), "--held-out-chats", str(folder / "held.jsonl"),
        "--train.epochs", "1", "--train.batch-size", "4", "--teacher-batch", "4", "--k", "5", *more,
    ]  # fmt: skip


def metrics(out, arm):
    return read_jsonl(out / "arms" / arm / "metrics.jsonl")


@pytest.mark.slow
def test_live_teachers_teach_what_stored_ones_do(folder, tmp_path):
    """Two teachers of other vocabularies; the same losses step by step, the same report, and no stores."""
    outs = {how: tmp_path / how for how in ("stored", "live")}
    sources = ["--sources", "zoo:qwen-source", "zoo:gemma-source", "--arms", "kl", "--fusion.function", "avgce"]
    for how, out in outs.items():
        attempt(distil, arguments(folder, out, *sources, "--teachers", how))
    assert (outs["stored"] / "teachers/qwen-source/store.json").exists() and not (outs["live"] / "teachers").exists()
    ours, theirs = (metrics(out, "kl") for out in outs.values())
    assert len(ours) == 4 and ours[0].keys() == theirs[0].keys() > {"mass", "mass/digits", "loss/fusion"}
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([one[k] for k in other], list(other.values()), rtol=2e-3, atol=1e-4)
    told = [json.loads((out / "results.json").read_text()) for out in outs.values()]
    assert told[0].keys() == told[1].keys() == {"target", "qwen-source", "gemma-source", "kl"}
    np.testing.assert_allclose(*([t["kl"]["bits per byte"] for t in told]), rtol=1e-3)
    covered = json.loads((outs["live"] / "coverage.json").read_text())
    assert [(c["arm"], c["source"]) for c in covered] == [("kl", "qwen-source"), ("kl", "gemma-source")]
    for c in covered:
        assert sum(c["mass"].values()) == pytest.approx(1) and c["mass"]["kept"] > 0.3
        assert sum(k["mass"] for k in c["classes"].values()) == pytest.approx(1)
    report = (outs["live"] / "report.md").read_text()
    assert "## Probability of each source by class of token" in report and "| kl | gemma-source | letters |" in report
    assert (outs["live"] / "students/kl/model.safetensors").exists()


@pytest.mark.slow
def test_every_loss_from_a_teacher_of_the_students_vocabulary(folder, tmp_path):
    """A teacher that is the student itself: no divergence at first, and all of its listed mass is kept."""
    arms = ["sft", "ce", "kl", "reverse_kl", "jsd", "tv"]
    more = [
        "--sources",
        str(folder / "teacher"),
        "--arms",
        *arms,
        "--fusion.tail",
        "renormalise",
        "--train.log-every",
        "1",
    ]
    attempt(distil, arguments(folder, tmp_path / "run", *more))
    first = {arm: metrics(tmp_path / "run", arm)[0] for arm in arms}
    for arm in ("kl", "reverse_kl", "jsd", "tv"):
        assert abs(first[arm]["loss/fusion"]) < 2e-3 and first[arm]["lambda"] == pytest.approx(0.9)
    assert first["ce"]["loss/fusion"] > 0.01 and first["sft"]["lambda"] == 1.0
    (covered, *_) = json.loads((tmp_path / "run" / "coverage.json").read_text())
    assert covered["rules"]["one_to_one"] == 1.0
    assert covered["mass"]["unmapped"] == covered["mass"]["altered"] == 0.0
    weights = [load_file(tmp_path / f"run/students/{arm}/model.safetensors") for arm in ("kl", "reverse_kl", "tv")]
    name = next(iter(weights[0]))
    assert all(not np.array_equal(weights[0][name], other[name]) for other in weights[1:])


@pytest.mark.slow
def test_teachers_on_devices_of_their_own(folder, tmp_path):
    """Of 4 virtual devices two train and two teach; what is learnt is what one mesh of two gives."""
    more = ["--teachers", "live", "--arms", "jsd", "--train.micro-batches", "1", "--train.log-every", "1"]
    outs = {"own": (4, ["--train.mesh-spare", "2"]), "shared": (2, [])}
    for out, (devices, spare) in outs.items():
        words = arguments(folder, tmp_path / out, *more, *spare)
        program = Program(script("distil", *words), os.environ | virtual_devices(devices) | {"JAX_PLATFORMS": "cpu"})
        _, errors = program.communicate()
        assert program.returncode == 0, errors
    for one, other in zip(*(metrics(tmp_path / out, "jsd") for out in outs), strict=True):
        np.testing.assert_allclose([one[k] for k in other], list(other.values()), rtol=2e-3, atol=1e-4)


def test_texts_instead_of_chats(folder, tmp_path):
    out = tmp_path / "run"
    attempt(distil, [
        "--out", str(out), "--texts", str(folder / "texts.jsonl"), "--arms", "as-set", "--fusion.kind", "tv",
        "--fusion.tail", "ignore", "--train.epochs", "1", "--train.batch-size", "4", "--teacher-batch", "4",
    ])  # fmt: skip
    assert metrics(out, "as-set")[-1]["loss/fusion"] < 1


@pytest.mark.parametrize(("args", "wanted"), [
    (["--arms", "kl", "rkl"], ["field '--arms': 'rkl' is not one of its choices"]),
    (["--arms", "reverse_kl", "--fusion.tail", "none"], ["is infinite where", "Set tail to renormalise, bucket or ignore"]),
    (["--fusion.jsd-beta", "1"], ["jsd-beta", "out of range"]),
    (["--sources"], ["sources"]),
    (["--texts", "a.txt", "--chats", "b.jsonl"], ["are given beside chats"]),
    (["--teachers", "dead"], ["--teachers"]),
    (["--teachers", "live", "--train.mesh-spare", "9"], ["field '--train.mesh-spare'", "are left to others"]),
], ids=str)  # fmt: skip
def test_what_is_refused_before_anything_is_made(tmp_path, capsys, folder, args, wanted):
    given = [str(folder / a) if a.endswith("b.jsonl") else a for a in args]
    for name in ("a.txt", "b.jsonl"):
        (folder / name).write_text('{"prompt": "a", "response": "b"}\n')
    fails(distil, ["--out", str(tmp_path / "run"), *given], capsys, *wanted)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.array_record"))


def test_the_shipped_sweep_crosses_losses_tails_and_entries():
    sweep = read_sweep(EXPERIMENTS / "sweeps/distil.yaml")
    settings = [sweep.settings(cell, 7) for cell in sweep.cells]
    assert len({(s.fusion.kind, s.fusion.tail, s.k) for s in settings}) == len(settings) == 36
    assert {s.arms for s in settings} == {("as-set",)} and {s.seed for s in settings} == {7}
