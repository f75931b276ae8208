"""Every kind of bad input ends with one clear line naming file, record, field and cure, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dpo, generate, sft, wrpo
from fusion_jax.jsonl import write_jsonl
from fusion_jax.models.folder import load, save
from fusion_jax.models.safetensors_io import PlannedTensor, open_folder, write_folder
from fusion_jax.runs.opening import open_run
from fusion_jax.settings import to_json
from tests.small import attempt, fails, pairs, quads, small_folder, small_model, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small") / "model")


def quad(**changes: Any) -> dict[str, Any]:
    return {**quads(1)[0], **changes}


def say(text: Any, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": text}


BROKEN_QUADS: dict[str, tuple[bytes | dict[str, Any], tuple[str, ...]]] = {
    "broken line": (b'{"prompt": "a", ', ("record 2", "is not valid JSON", "Correct or remove the line")),
    "not an object": (b"[1, 2]", ("record 2", "is not a JSON object")),
    "not utf-8": (b'{"prompt": "\xff"}', ("record 2", "is not UTF-8")),
    "nan constant": (b'{"prompt": NaN}', ("record 2", "NaN is not JSON")),
    "key twice": (b'{"prompt": "a", "prompt": "b"}', ("record 2", "'prompt' stands twice")),
    "missing prompt": ({"chosen": []}, ("record 2", "field 'prompt'", "is missing")),
    "blank prompt": (quad(prompt=say(" ", "user")), ("record 2", "field 'prompt'", "is blank")),
    "prompt of a number": (quad(prompt=7), ("record 2", "field 'prompt'", "is not a text")),
    "unknown role": (quad(prompt=say("a", "human")), ("record 2", "prompt[0].role", "'human'")),
    "role order": (
        quad(prompt=[say("a", "user"), say("b", "user")]),
        ("record 2", "prompt[1].role", "two user messages follow each other"),
    ),
    "starts with the assistant": (quad(prompt=[say("a"), say("b", "user")]), ("record 2", "starts with the assistant")),
    "one chosen": (quad(chosen=[say("a")]), ("record 2", "field 'chosen'", "exactly two")),
    "two rejected": (quad(rejected=[say("a"), say("b")]), ("record 2", "field 'rejected'", "exactly one")),
    "response by the user": (quad(rejected=[say("a", "user")]), ("record 2", "rejected[0].role", "'user'")),
    "response without content": (quad(rejected=[{"role": "assistant"}]), ("record 2", "'content'", "is missing")),
    "content of a list": (quad(rejected=[say(["a"])]), ("record 2", "'content'", "is list, not text")),
}


@pytest.mark.parametrize("kind", BROKEN_QUADS)
def test_broken_quadruples(kind, model, tmp_path, capsys):
    bad, wanted = BROKEN_QUADS[kind]
    file = tmp_path / "quads.jsonl"
    line = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    file.write_bytes(json.dumps(quad()).encode() + b"\n" + line + b"\n")
    out = tmp_path / "out"
    fails(wrpo, ["--target", str(model), "--quadruples", str(file), "--out", str(out)], capsys, str(file), *wanted)
    assert not list(out.rglob("*.tmp")) and not (out / "model").exists()


def test_nothing_usable_is_left(model, tmp_path, capsys):
    same = [quad(chosen=[say("a"), say("b")], rejected=[say("b")]), quad(rejected=[say(" ")])]
    file = write(tmp_path / "quads.jsonl", same)
    wanted = ("no usable quad record", "chosen equals rejected: 1", "blank response: 1")
    fails(wrpo, ["--target", str(model), "--quadruples", str(file), "--out", str(tmp_path / "o")], capsys, *wanted)


RESPONSES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no source": ({"source_model": None}, ("record 1", "field 'source_model'", "is missing")),
    "reward in words": ({"reward": "good"}, ("record 1", "field 'reward'", "not a number")),
    "nothing to verify": ({"answer": None}, ("record 1", "field 'answer'", "is missing")),
    "answer of a number": ({"answer": 42}, ("record 1", "field 'answer'", "is int, not text")),
    "sample in words": ({"sample": "first"}, ("record 1", "field 'sample'", "'first', not a whole number")),
}


@pytest.mark.parametrize("kind", RESPONSES)
def test_broken_responses(kind, model, tmp_path, capsys):
    changes, wanted = RESPONSES[kind]
    record = {"prompt": "What?", "source_model": "a", "response": "b", "answer": "b"} | changes
    file = write(tmp_path / "responses.jsonl", [record])
    fails(wrpo, ["--target", str(model), "--responses", str(file), "--out", str(tmp_path / "o")], capsys, *wanted)


def test_prompts_and_names(model, tmp_path, capsys):
    twice = write(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "b"}] * 2)
    out = ["--target", str(model), "--out", str(tmp_path / "o")]
    fails(
        wrpo,
        ["--prompts", str(twice), *out],
        capsys,
        "record 2",
        "repeats record 1",
        "'prompt'",
    )
    fails(
        wrpo,
        ["--target", str(model), "--prompts", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o2")],
        capsys,
        "there is no such file",
    )
    fails(wrpo, ["--preset", "large", *out], capsys, "no preset is called 'large'", "tiny, llama3-8b")
    fails(wrpo, ["--lerning-rate", "1"], capsys, "lerning-rate")
    fails(wrpo, ["--seed", "many"], capsys, "seed")
    fails(dpo, ["--model", "zoo:nobody", "--out", str(tmp_path / "o3")], capsys, "no model 'nobody'")
    fails(generate, ["--model", str(model)], capsys, "give either --prompt")
    fails(generate, ["--model", str(model), "--prompt", "a " * 300], capsys, "exceed the model's 128 positions")
    responses = [{"prompt": "a", "source_model": "m", "response": "b", "answer": "b"}]
    file = str(write(tmp_path / "r.jsonl", responses))
    args = ["--target", str(model), "--responses", file, "--verifier", "gsm8", "--out", str(tmp_path / "o4")]
    fails(wrpo, args, capsys, "field '--verifier': 'gsm8' is not one of its choices", "Did you mean 'gsm8k'")


def rewrite(folder: Path, change: Any) -> None:
    """The folder's weights again, after `change` of {name: array}."""
    tensors = {name: entry.read() for name, entry in open_folder(folder).items()}
    change(tensors)
    (folder / "model.safetensors").unlink()
    write_folder(folder, [PlannedTensor(n, v.dtype, v.shape, lambda v=v: v) for n, v in tensors.items()])


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


Q = "model.layers.0.self_attn.q_proj.weight"
BROKEN_FOLDERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ("holds no config.json",)),
    "broken config": (lambda f: (f / "config.json").write_text("{"), ("config.json", "is not JSON")),
    "unknown architecture": (lambda f: edit_json(f / "config.json", model_type="gpt9"), ("'gpt9'", "Known: ", "llama")),
    "unknown rotary scaling": (
        lambda f: edit_json(f / "config.json", rope_parameters={"rope_type": "axial"}), ("'axial'", "rope_parameters")),
    "field missing": (lambda f: edit_json(f / "config.json", hidden_size=None), ("field 'hidden_size'", "is missing")),
    "missing weight": (lambda f: rewrite(f, lambda t: t.pop(Q)), (Q, "the weight is missing")),
    "extra weight": (lambda f: rewrite(f, lambda t: t.update(extra=np.ones(3, np.float32))), ("'extra'", "does not have")),
    "wrong shape": (lambda f: rewrite(f, lambda t: t.update({Q: np.ones((3, 3), np.float32)})), (Q, "(3, 3)", "(32, 32)")),
    "cut short": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 100), ("is cut short",)),
    "broken header": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{"), ("broken safetensors header",)),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), ("not a whole safetensors file",)),
    "integer weights": (
        lambda f: (f / "model.safetensors").write_bytes(
            struct.pack("<Q", 56) + b'{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}   ' + b"\0"), ("dtype I8",)),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ("pickled weights", "Convert the model")),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("holds no model.safetensors",)),
    "index without file": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        ("b.safetensors", "is not there")),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), ("field 'tokenizer'", "cannot be loaded")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_FOLDERS)
def test_broken_folders(kind, model, tmp_path, capsys):
    spoil, wanted = BROKEN_FOLDERS[kind]
    shutil.copytree(model, tmp_path / "model")
    spoil(tmp_path / "model")
    fails(generate, ["--model", str(tmp_path / "model"), "--prompt", "a"], capsys, str(tmp_path / "model"), *wanted)


def test_tokenizer_does_not_fit_or_is_not_there(tmp_path, capsys):
    whole = small_model()
    small = small_folder(tmp_path / "none", vocab_size=300)
    shutil.rmtree(tmp_path / "none")
    save(small_model(vocab_size=300), small)
    fails(generate, ["--model", str(small), "--prompt", "a"], capsys, "340 entries, the embedding only 300")
    whole.tokenizer.chat_template = None
    save(whole, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    fails(
        generate,
        ["--model", str(tmp_path / "plain"), "--prompt", "a"],
        capsys,
        "no chat template",
        "chat_template.jinja",
    )
    fails(generate, ["--model", str(tmp_path / "nowhere"), "--prompt", "a"], capsys, "there is no such folder")


def dpo_args(model: Path, file: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--data", str(file), "--out", str(out), "--train.batch-size", "4", *more]


def test_run_folders(model, tmp_path, capsys):
    file = write(tmp_path / "pairs.jsonl", pairs(12))
    fails(
        dpo, dpo_args(model, file, tmp_path / "few", "--train.batch-size", "64"), capsys, "do not fill one batch of 64"
    )
    args = dpo_args(model, file, tmp_path / "odd", "--train.micro-batches", "3")
    fails(dpo, args, capsys, "batch size 4 is not a multiple of 3")
    fails(dpo, dpo_args(model, file, tmp_path), capsys, "holds files but no run")
    fails(dpo, dpo_args(model, file, file), capsys, "is a file, not a folder")
    again = dpo_args(model, file, tmp_path / "begun")
    for resume in ("False", "True"):
        wrong = [*again, "--model", str(tmp_path / "none"), "--resume", resume]
        fails(dpo, wrong, capsys, "there is no such folder")
        assert not (tmp_path / "begun").exists() and not (tmp_path / "few").exists()
    tiny = dpo.PRESETS["tiny"]
    other = replace(tiny, model="other", data=str(file), train=replace(tiny.train, batch_size=4))
    with open_run(tmp_path / "begun", to_json(other), resume=False) as run:
        run.stage("pairs.jsonl", lambda: pairs(2))
    fails(dpo, again, capsys, "holds an unfinished run", "continue it with --resume")
    fails(dpo, [*again, "--resume", "True"], capsys, "field 'model'", "was started with")


def test_weights_that_are_not_finite(model, tmp_path, capsys):
    """The reference names the record; a step names the records of its batch and leaves the last good state."""
    broken = load(model)
    broken.params["final_norm"]["scale"] = jnp.full(32, jnp.nan)
    save(broken, tmp_path / "nan")
    file = write(tmp_path / "pairs.jsonl", pairs(12))
    fails(
        dpo,
        dpo_args(tmp_path / "nan", file, tmp_path / "a"),
        capsys,
        "record largest-train-0-0",
        "log-probs that are not finite",
    )
    args = dpo_args(tmp_path / "nan", file, tmp_path / "b", "--loss.loss", "simpo")
    line = fails(dpo, args, capsys, "loss or gradient of step 0 is not finite", "their log-probs are not finite")
    assert any(r["prompt_id"] in line for r in pairs(12))
    assert "inspect_data.py" in line and "lower learning_rate" in line and "compute_dtype" not in line
    broken.params["final_norm"]["scale"] = jnp.full(32, 1e30)  # finite in bfloat16, but not what comes of it
    save(broken, tmp_path / "large")
    args = dpo_args(tmp_path / "large", file, tmp_path / "c", "--loss.loss", "simpo")
    fails(dpo, [*args, "--train.compute-dtype", "bfloat16"], capsys, "is not finite", "or compute_dtype float32")


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path, monkeypatch, capsys):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_jsonl(tmp_path / "records.jsonl", [{"a": 1}])
    with pytest.raises(OSError, match="No space left"):
        save(load(model), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    args = ["--model", str(model), "--prompt", "a", "--max-new-tokens", "2", "--out", str(tmp_path / "out.jsonl")]
    fails(generate, args, capsys, "the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_place(model, tmp_path, capsys):
    target = "/proc/fusion_jax_cannot_write_here"
    if not os.path.isdir("/proc"):
        pytest.skip("no /proc on this system")
    fails(sft, ["--model", str(model), "--out", target], capsys, target, "choose another --out")
    assert not os.path.exists(target)


def test_wrpo_refuses_early_what_a_late_stage_would_refuse(tmp_path, capsys, model):
    """Before anything is sampled or trained: names of verifiers, two models of one name, answers, whole conversations."""
    shutil.copytree(model, tmp_path / "other" / "model")
    out = ["--out", str(tmp_path / "run")]
    fails(wrpo, [*out, "--accuracy", "typo"], capsys, "typo", "gsm8k")
    fails(wrpo, [*out, "--sources", str(model), str(tmp_path / "other/model")], capsys, "two models are called 'model'")
    assert not (tmp_path / "run").exists()
    ready = {"prompt": "a?", "source_model": "s", "response": "4", "reward": 1.0}
    write_jsonl(tmp_path / "ready.jsonl", [ready])
    options = ["--target", str(model), "--responses", str(tmp_path / "ready.jsonl"), "--out", str(tmp_path / "run2")]
    fails(wrpo, options, capsys, "record 1", "'answer'", "--reward-model")
    talk = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "a?"}]
    write_jsonl(tmp_path / "talk.jsonl", [{"prompt": talk, "answer": "4"}])
    options = ["--target", str(model), "--prompts", str(tmp_path / "talk.jsonl"), "--out", str(tmp_path / "run3")]
    fails(wrpo, options, capsys, "record 1", "'prompt'", "more than one user message")


def test_lengths_that_leave_nothing_are_refused(tmp_path, capsys, model):
    write_jsonl(tmp_path / "pairs.jsonl", pairs(20))
    options = ["--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), "--train.batch-size", "8"]
    out = ["--out", str(tmp_path / "a"), "--text.tokens.max-length", "64"]
    fails(dpo, [*options, *out], capsys, "max_prompt_length 96 leaves no room in max_length 64")


def test_resume_with_other_examples_is_refused(tmp_path, capsys, model):
    data, options = tmp_path / "sft.jsonl", ["--model", str(model), "--train.batch-size", "4"]
    options += ["--data", str(data), "--out", str(tmp_path / "run"), "--train.epochs", "2"]
    write_jsonl(data, [{"prompt": f"{i}?", "response": str(i)} for i in range(8)])
    attempt(sft, options)
    (tmp_path / "run/finished.json").unlink()
    write_jsonl(data, [{"prompt": f"{i}?", "response": str(i + 1)} for i in range(8)])
    fails(sft, [*options, "--resume", "True"], capsys, "examples.json", "started with other examples")
