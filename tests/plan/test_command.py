"""`--plan` on the experiments: which programs a run has, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest

from experiments import dpo, fusechat, fusellm, generate, merge, sft, wrpo
from fusion_jax.errors import InputError
from fusion_jax.plan import command
from fusion_jax.plan.requests import Decode, MergeTensor, Prefill, ScoreStep, TeacherStep, TrainStep
from fusion_jax.plan.runs import Ask

LLAMA = Ask("v5e-16", rows=1000, preset="llama3-8b")


def programs(planned):
    return [p.request.program for p in planned]


def test_wrpo_plans_its_stages_with_the_public_model_of_its_preset():
    planned = wrpo.plans(wrpo.PRESETS["llama3-8b"], LLAMA)
    step, score, tune, prefill, decode = programs(planned)
    assert step == TrainStep("wrpo", 16, 2048, 0, 8, "stored", "full", shared_prompt=False)
    assert score == ScoreStep(16, 2048, 3, 0, shared_prompt=False)
    assert tune == TrainStep("sft", 64, 2048, 0, 2, "none", "full", shared_prompt=False)
    assert isinstance(prefill, Prefill) and isinstance(decode, Decode)
    assert (decode.rows, decode.samples, decode.capacity) == (32, 5, 4096)
    assert planned[0].times == 1000 // 128 and planned[1].times == 63
    assert {p.request.model["hidden_size"] for p in planned} == {4096}


def test_micro_batches_that_do_not_divide_are_replaced_and_told():
    planned = wrpo.plans(wrpo.PRESETS["llama3-8b"], dataclasses.replace(LLAMA, slice="v5p-64"))[0]
    assert (planned.request.program.examples, planned.request.program.micro_batches) == (32, 4)
    assert any("4 micro-batches" in note for note in planned.notes)
    with pytest.raises(InputError, match="does not divide over 256 chips"):
        wrpo.plans(wrpo.PRESETS["llama3-8b"], dataclasses.replace(LLAMA, slice="v5e-256"))


def test_a_prompt_of_known_length_is_shared():
    planned = dpo.plans(dpo.PRESETS["llama3-8b"], dataclasses.replace(LLAMA, prompt=1000))[0]
    assert planned.request.program == TrainStep("dpo", 16, 1280, 1024, 8, "stored", "full")
    with pytest.raises(InputError, match="plan-prompt"):
        dpo.plans(dpo.PRESETS["llama3-8b"], dataclasses.replace(LLAMA, prompt=2048))


def test_fusion_teachers_merges_and_samples_are_planned(tmp_path):
    found = fusechat.plans(fusechat.PRESETS["openchat-7b"], Ask("v6e-8", preset="openchat-7b"))
    read, step, tensor = programs(found)
    assert read == TeacherStep(8, 2048, 10)
    assert (step.objective, step.k) == ("fusion", 10)
    assert tensor == MergeTensor("sce", 3, (32002, 4096))
    assert [
        p.objective for p in programs(fusellm.plans(fusellm.PRESETS["llama2-7b"], Ask("v6e-8", preset="llama2-7b")))[1:]
    ] == ["fusion"]
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps({
        "merge_method": "ties", "base_model": "llama3-8b", "parameters": {"weight": 0.5},
        "models": [{"model": "one"}, {"model": "two"}],
    }))  # fmt: skip
    assert programs(merge.plans(merge.Settings(str(recipe)), Ask("v5e-8"))) == [MergeTensor("ties", 2, (128256, 4096))]
    found = generate.plans(generate.Settings(model="llama3-8b", mesh_tensor=8), Ask("v5e-8"))
    assert [p.request.mesh for p in found] == [(1, 1, 8)] * 2


@pytest.mark.parametrize("args, message", [
    (["--plan", "v5e-17"], "v5e-16"), (["--plan", "v5e-16", "--model", "nowhere"], "llama3-70b"),
    (["--preset", "llama3-8b", "--plan", "v5e-256"], "does not divide over 256 chips"),
])  # fmt: skip
def test_bad_plans_end_with_one_line(args, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "check_compiler", lambda: None)
    with pytest.raises(SystemExit) as end:
        command.run(sft.Settings, sft.main, sft.plans, presets=sft.PRESETS, description="", args=args)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_without_plan_is_a_run(monkeypatch):
    seen = []
    command.run(sft.Settings, seen.append, sft.plans, presets=sft.PRESETS, description="", args=["--out", "x"])
    assert seen == [dataclasses.replace(sft.PRESETS["tiny"], out="x")]


@pytest.mark.parametrize("name", ["sft", "dpo", "wrpo", "fusellm", "fusechat", "cache_teacher", "generate", "merge"])
def test_help_tells_of_plan(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    with pytest.raises(SystemExit):
        presets = getattr(module, "PRESETS", None)
        command.run(module.Settings, module.main, module.plans, presets=presets, description="", args=["--help"])
    assert "--plan SLICE" in capsys.readouterr().out
