"""The benchmark for one GPU on a CPU: its parts in small, its PyTorch beside this package, wheels, what it reports."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import gpu, gpu_attention, gpu_ours, gpu_parity, gpu_report, gpu_shape, gpu_wheels
from fusion_jax.models.families import config_from_hf
from tests.small import ROOT

torch = pytest.importorskip("torch")

from experiments.benchmarks import gpu_torch  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiler")

SHAPE = dataclasses.replace(gpu_shape.SMALL, rows=3, quads=2)


@pytest.mark.parametrize("name", list(gpu_parity.MODELS))
def test_a_cpu_gives_the_stored_numbers(name):
    rows = list(gpu_parity.compared(name))
    assert [row["what"] for row in rows] == [
        "logits", "loss", "gradient norm", "weights after two steps", "logits in bfloat16",
    ]  # fmt: skip
    assert all(row["ok"] for row in rows), rows
    assert all(row["difference"] < row["tolerance"] / 10 for row in rows[:-1]), rows


def test_a_wrong_number_is_noticed(monkeypatch):
    """Another rotary base, a loss off by 2e-5 of it, a gradient by 2e-4, a change of the weights by 2e-3."""
    stored = json.loads(gpu_parity.FILE.read_text())["models"]["llama"]
    steps = {
        "loss": np.multiply(stored["loss"], 1 + 2e-5).tolist(), "grad_norm": np.multiply(stored["grad_norm"], 1 + 2e-4).tolist(),
        "changes": stored["changes"] | {"embed/embedding": np.multiply(stored["changes"]["embed/embedding"], 1 + 2e-3).tolist()},
    }  # fmt: skip
    monkeypatch.setattr(gpu_parity, "steps_of", lambda *_: steps)
    assert [row["ok"] for row in gpu_parity.compared("llama")] == [True, False, False, False, True]
    monkeypatch.setitem(gpu_parity.MODELS, "llama", gpu_parity.MODELS["llama"] | {"rope_theta": 20000.0})
    monkeypatch.setattr(gpu_parity, "steps_of", lambda *_: {name: stored[name] for name in steps})
    assert [row["ok"] for row in gpu_parity.compared("llama")] == [False, True, True, True, True]


@pytest.fixture(scope="module")
def params():
    config = config_from_hf(SHAPE.model)
    return jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, gpu_ours.weights(config, jnp.float32))


def torch_job(name, params):
    """PyTorch's job with these weights."""
    job = gpu_torch.Job(name, SHAPE)

    def set_to(parameter, value):
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(value)))

    set_to(job.model.embedding, params["embed"]["embedding"])
    set_to(job.model.final_norm.scale, params["final_norm"]["scale"])
    for number, block in enumerate(job.model.blocks):
        for part, values in params["layers"].items():
            module = getattr(block, part)
            (value,) = values.values()
            set_to(module.scale if "norm" in part else module.weight, value[number].T)
    return job


@pytest.mark.parametrize("name", list(gpu_ours.OBJECTIVES))
def test_pytorch_trains_on_the_same_loss(name, params):
    ours = gpu_ours.training(name, config_from_hf(SHAPE.model), SHAPE, params)
    theirs = gpu_torch.training(torch_job(name, params))
    assert [ours(), ours()] == pytest.approx([theirs(), theirs()], rel=1e-5)


def test_pytorch_scores_and_decodes_the_same(params):
    config = config_from_hf(SHAPE.model)
    step = gpu_ours.make_score_step(config, gpu_ours.compute(SHAPE.quads))
    wanted = np.asarray(step(params, gpu_ours.batch_of("scoring", SHAPE)))
    with torch.no_grad():
        np.testing.assert_allclose(torch_job("scoring", params).sequences().numpy(), wanted, rtol=1e-5)
    ours = gpu_ours.decoding(config, SHAPE, params)()
    assert gpu_torch.decoding(torch_job("decoding", params))() == pytest.approx(ours, rel=1e-5)


def test_attention_without_cudnn_is_left_out_with_a_reason():
    rows = list(gpu_attention.jobs(small=True)["causal 2048 x 64"]())
    assert [row["kernel"] for row in rows] == list(gpu_attention.KERNELS)
    assert rows[1]["apart"] < 1e-5 and "cuDNN" in rows[2]["skipped"]


@pytest.mark.parametrize("module", [gpu_ours, gpu_torch])
def test_without_a_gpu_only_the_small_size_runs(module):
    with pytest.raises(RuntimeError, match="here"):
        module.jobs(small=False)


def test_the_shape_is_that_of_llama_1b():
    shape = gpu_shape.FULL
    assert gpu_ours.work("sft", shape)["tokens"] == gpu_ours.work("wrpo", shape)["tokens"] == 16384
    parameters = 1_235_814_400  # of meta-llama/Llama-3.2-1B
    assert gpu_ours.work("sft", shape)["flops"] == pytest.approx(6 * parameters * 16384, rel=0.12)


def test_what_a_process_leaves_is_reported_however_it_ends(tmp_path):
    """One job fails, a process is stopped at its limit, one crashes."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    part = gpu.Part("one", "gpu_attention", ("no such job", "causal 2048 x 64"), 100)
    rows = gpu.of_child(part, tmp_path, env, True, 100)
    assert rows[0] == {"part": "one", "job": "no such job", "error": "KeyError: 'no such job'"}
    assert len(rows) == 5 and gpu_report.sound(rows[1]) and not gpu_report.sound(rows[0])
    code, seconds = gpu.run(
        [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], env, 1.0, tmp_path / "log"
    )
    assert code is None and seconds < 30
    assert gpu.ended(code, 1.0, tmp_path / "log") == "stopped after 1 s: on"
    code, _ = gpu.run([sys.executable, "-c", "raise SystemExit('no memory')"], env, 60.0, tmp_path / "log")
    assert gpu.ended(code, 60.0, tmp_path / "log") == "ended with code 1: no memory"


def test_the_page_compares_and_names_what_is_missing():
    shared = {"part": "a", "job": "sft", "least": 0.4, "most": 0.6, "tokens": 1000, "first": 3.0, "value": 1.0}
    ours = shared | {
        "by": "fusion_jax", "seconds": 0.5, "flops": 247.25e12, "device": "NVIDIA H200", "versions": "jax 1",
        "peak_bytes": None,
    }  # fmt: skip
    theirs = ours | {"by": "PyTorch", "seconds": 1.0, "peak_bytes": 2**31, "device": "NVIDIA B300"}
    text = gpu_report.page([ours, theirs, {"part": "b", "error": "no time was left"}])
    assert "| sft | fusion_jax | 0.5 | 0.4 to 0.6 | 2,000 | 50.0% |  | 1.00 | 3 |" in text
    assert "| sft | PyTorch | 1 | 0.4 to 0.6 | 1,000 |  | 2.0 | 2.00 | 3 |" in text
    assert "| b |  | no time was left |" in text


def test_what_is_packed(tmp_path, monkeypatch, capsys):
    """The pinned requirements that the machine lacks, with what they need, for its Python; never jax."""
    calls = []

    def pip(*arguments):
        calls.append(arguments)
        if arguments[0] == "install":
            report = next(a for a in arguments if a.startswith("--report=")).partition("=")[2]
            found = [{"metadata": {"name": n, "version": "1"}} for n in ("flax", "jax", "numpy", "Pillow", "PyYAML")]
            Path(report).write_text(json.dumps({"install": found}))
        else:
            for name, size in (("flax", 50), ("pillow", 20)):
                (tmp_path / f"wheels/{name}-1-py3-none-any.whl").write_bytes(bytes(size * 10**6))

    monkeypatch.setattr(gpu_wheels, "pip", pip)
    (tmp_path / "pip.txt").write_text("PyYAML==6.0\n")
    gpu_wheels.pack(tmp_path / "wheels", ROOT / "requirements.txt", installed=tmp_path / "pip.txt")
    assert calls[1][-2:] == ("flax==1", "Pillow==1") and "--python-version=3.12" in calls[1]
    assert [file.name for file in (tmp_path / "wheels").iterdir()] == ["flax-1-py3-none-any.whl"]
    assert "1 wheels, 50.0 MB" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no wheels"):
        gpu_wheels.install(tmp_path, tmp_path / "site")


def test_every_requirement_is_known_to_the_packing():
    """A new one is either packed or said to be of no use there."""
    needed = gpu_wheels.names_in(ROOT / "requirements.txt") - gpu_wheels.BROUGHT - gpu_wheels.UNUSED
    assert needed == {
        "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "array-record", "pyyaml", "safetensors",
        "rapidfuzz", "rich", "matplotlib", "etils", "xxhash", "httpx2",
    }  # fmt: skip


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path):
    """As a user starts it, with few optimisations of the compiler; every part ends well."""
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "experiments/benchmarks/gpu.py", "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    jobs = {(row["job"], row["by"]) for row in rows if "by" in row}
    assert jobs == {(job, by) for job in gpu.SMALL_PARTS[1].jobs for by in ("fusion_jax", "PyTorch")}
    assert rows[-1]["part"] == "default" and rows[-1]["stages"]
    assert (tmp_path / "report.md").read_text() in done.stdout
