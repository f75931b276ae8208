"""`--plan` on the experiments: which programs a run has, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter

import numpy as np
import pytest

from experiments import distil, dpo, fusechat, fusechat3, fusellm, fuserl, generate, infifpo, merge, prune, sft, wrpo
from fusion_jax.data.order import num_steps, split_indices
from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.plan import command, compile, fits
from fusion_jax.plan.flops import parameter_count
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.parts import Training, check_all, plan_of
from fusion_jax.plan.programs import (
    BeamDecode,
    Decode,
    MergeTensor,
    Prefill,
    ScoreStep,
    SearchLayer,
    SearchLoss,
    TeacherStep,
    TrainStep,
)
from fusion_jax.plan.programs.program import Place
from fusion_jax.plan.requests import Request, from_json, to_json
from fusion_jax.plan.runs import Ask
from fusion_jax.prune.blocks import candidates
from fusion_jax.prune.scoring import How, Text, score
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sharding import make_mesh
from fusion_jax.train.settings import TrainSettings
from tests.small import small_model

PAIRS = dataclasses.replace(dpo.PRESETS["llama3-8b"], data="pairs.jsonl")
LLAMA = Ask("v5e-16", rows=1000, preset="llama3-8b")


def programs(planned):
    return [p.request.program for p in planned]


def test_encoders_are_refused_as_they_are_in_a_run():
    settings = dataclasses.replace(sft.PRESETS["llama3-8b"], model="t5-large")
    with pytest.raises(InputError, match="t5-large: is t5, which has an encoder"):
        plan_of(sft.parts(settings), dataclasses.replace(LLAMA, preset=""))


def test_wrpo_plans_its_stages_with_the_public_model_of_its_preset():
    planned = plan_of(wrpo.parts(wrpo.PRESETS["llama3-8b"]), LLAMA)
    step, score, tune, prefill, decode = programs(planned)
    assert step == TrainStep("wrpo", 16, 2048, 0, 8, "stored", "full", shared_prompt=False, start="float32")
    assert score == ScoreStep(16, 2048, 3, 0, shared_prompt=False, start="float32")
    assert tune == TrainStep("sft", 64, 2048, 0, 2, "none", "full", shared_prompt=False)
    assert isinstance(prefill, Prefill) and isinstance(decode, Decode)
    assert (decode.rows, decode.samples, decode.capacity, decode.kept) == (32, 5, 4096, "float32")
    assert planned[-1].request.mesh == (2, 1, 8)
    ready = dataclasses.replace(wrpo.PRESETS["llama3-8b"], quadruples="quads.jsonl")
    assert [p.start for p in programs(plan_of(wrpo.parts(ready), LLAMA))] == ["bfloat16", "bfloat16"]
    assert planned[0].times == (667 - 20) // 128 and planned[1].times == 41  # two thirds of the prompts, 3 % held out
    assert planned[2].times == 333 // 128
    assert {p.request.model["hidden_size"] for p in planned} == {4096}


@pytest.mark.parametrize("held_out", [0.03, 0.1, 0.25])
def test_a_plan_counts_the_steps_that_a_run_takes_of_any_number_of_records(held_out):
    """The shares of the stages are rounded one after the other, as the run does."""
    tiny = wrpo.PRESETS["tiny"]
    sft, preference = (dataclasses.replace(stage, batch_size=16) for stage in (tiny.sft, tiny.preference))
    s = dataclasses.replace(tiny, held_out=held_out, sft_share=1 / 3, sft=sft, preference=preference)
    preferring, tuning, *_ = (part for part in wrpo.parts(s) if isinstance(part, Training))
    tuned = dataclasses.replace(dpo.PRESETS["tiny"], held_out=held_out)
    paired = dpo.parts(tuned)[0]
    for prompts in range(64, 9000, 7):
        first, second = split_indices(prompts, s.sft_share, s.seed)
        held, train = split_indices(len(second), s.held_out, s.seed)
        assert (tuning.records(prompts), preferring.records(prompts)) == (len(first), len(train)), prompts
        assert paired.records(len(second)) == len(train)
    for prompts in (64, 100, 1001, 4242):
        planned = plan_of(wrpo.parts(s), dataclasses.replace(LLAMA, rows=prompts))[0]
        assert planned.times == num_steps(preferring.records(prompts), s.preference.batch_size, s.preference.epochs)


def test_what_an_experiment_samples_and_practises_itself_is_a_part_of_it(monkeypatch):
    """The pairs that DPO draws from its model, and the texts that the zoo's models practise before FuseLLM."""
    alone = dataclasses.replace(dpo.PRESETS["llama3-8b"], data="")
    kinds = [type(program) for program in programs(plan_of(dpo.parts(alone), LLAMA))]
    assert kinds == [TrainStep, ScoreStep, Prefill, Decode]
    assert len(plan_of(dpo.parts(PAIRS), LLAMA)) == 2
    tiny = fusellm.PRESETS["tiny"]
    practice = fusellm.practice_of(tiny)
    practised = [part for part in fusellm.parts(tiny) if isinstance(part, Training) and part.option == "--practise"]
    assert [part.model for part in practised] == [tiny.target, *tiny.sources]
    assert [part.records(0) for part in practised] == [
        sum(practice.lessons(path).values()) for path in (tiny.target, *tiny.sources)
    ]
    assert practice.texts == {tiny.target: tiny.target_practice} | dict.fromkeys(tiny.sources, tiny.practice)
    assert all(0.99 * practice.texts[p.model] < p.records(0) <= practice.texts[p.model] for p in practised)
    assert plan_of(practised, Ask("v5e-1"))[0].times == practised[0].records(0) // tiny.practise.batch_size
    read = dataclasses.replace(tiny, source_stores=("-", "runs/teacher", "-"))
    assert set(fusellm.practice_of(read).texts) == {tiny.target, tiny.sources[0], tiny.sources[2]}
    checked = []
    monkeypatch.setattr(fits, "check_training", lambda settings, option, *folders: checked.append(option))
    check_all(fusellm.parts(tiny))
    assert checked.count("--practise") == 4


def test_rows_that_a_model_cannot_read_are_told_by_the_option_that_sets_them():
    objective = dpo.parts(PAIRS)[0].objective
    for length in ("--text.tokens.max-length", "--max-length"):
        part = Training("long", "zoo:target", objective, PAIRS.train, 10_000, length=length)
        for look in (part.check, lambda part=part: part.plan(LLAMA)):
            with pytest.raises(InputError) as refused:
                look()
            assert refused.value.field == length


def test_micro_batches_that_do_not_divide_are_replaced_and_told():
    planned = plan_of(wrpo.parts(wrpo.PRESETS["llama3-8b"]), dataclasses.replace(LLAMA, slice="v5p-64"))[0]
    assert (planned.request.program.examples, planned.request.program.micro_batches) == (32, 4)
    assert any("4 micro-batches" in note for note in planned.notes)
    with pytest.raises(InputError, match="does not divide over 256 chips"):
        plan_of(wrpo.parts(wrpo.PRESETS["llama3-8b"]), dataclasses.replace(LLAMA, slice="v5e-256"))


def test_plans_follow_the_kernel_and_the_dtype_of_the_settings():
    settings = PAIRS
    train = dataclasses.replace(settings.train, attention="xla", compute_dtype="float32")
    step, score = programs(plan_of(dpo.parts(dataclasses.replace(settings, train=train)), LLAMA))
    assert [(p.attention, p.dtype) for p in (step, score)] == [("xla", "float32")] * 2
    planned = programs(plan_of(dpo.parts(settings), LLAMA))
    assert [(p.attention, p.dtype) for p in planned] == [("splash", "bfloat16")] * 2


@pytest.mark.parametrize(("packing", "note"), [("official", "packed blocks"), ("reset", "without the segment ids")])
def test_what_a_plan_does_not_follow_of_packing_is_said(packing, note):
    settings = sft.PRESETS["llama3-8b"]
    packed = dataclasses.replace(settings, text=dataclasses.replace(settings.text, packing=packing))
    alone = dataclasses.replace(settings, text=dataclasses.replace(settings.text, packing="none"))
    assert sum(note in n for n in plan_of(sft.parts(packed), LLAMA)[0].notes) == 1
    assert not any(note in n for n in plan_of(sft.parts(alone), LLAMA)[0].notes)


@pytest.mark.parametrize(("sizes", "mesh"), [
    ((1, -1, 1), (1, 16, 1)), ((1, 2, -1), (1, 2, 8)), ((-1, 2, 2), (4, 2, 2)), ((1, -1, 3), None), ((1, -1, 32), None),
    ((1, -1, -1), None), ((1, 0, 1), None),
])  # fmt: skip
def test_the_mesh_is_that_of_a_run_or_refused_as_there(sizes, mesh):
    settings = PAIRS
    data, fsdp, tensor = sizes
    train = dataclasses.replace(settings.train, mesh_data=data, mesh_fsdp=fsdp, mesh_tensor=tensor)
    asked = dataclasses.replace(settings, train=train)
    if mesh:
        assert {p.request.mesh for p in plan_of(dpo.parts(asked), LLAMA)} == {mesh}
        return
    with pytest.raises(InputError) as planned:
        plan_of(dpo.parts(asked), LLAMA)
    with pytest.raises(InputError) as run:
        make_mesh(*sizes, devices=[object()] * 16)
    assert str(planned.value) == str(run.value)


def test_prompts_and_caches_have_the_sizes_that_sampling_gives_them():
    """1,030 tokens are read at 1,280 and kept at 2,048; a cache doubles from 128 until it holds 300."""
    settings = generate.Settings(model="llama3-8b", mesh_tensor=8, max_new_tokens=300, batch_size=6)
    prefill, decode = programs(plan_of(generate.parts(settings), Ask("v5e-16", prompt=1030)))
    assert prefill == Prefill(2, 1280)
    assert (decode.prompt, decode.capacity) == (2048, 512)
    with pytest.raises(InputError, match="leave no room"):
        plan_of(generate.parts(dataclasses.replace(settings, max_new_tokens=8192)), Ask("v5e-16"))


def test_a_search_is_planned_with_the_calls_that_it_makes():
    """Of a first step, in which no block is gone, as `prune.scoring` counts them; candidates of both kinds branch off."""
    model, counted = small_model(num_hidden_layers=3), Counter()
    how = How(rows=4, states=2, count=lambda parts, states: counted.update([(len(parts), states)]))
    score(model.params, model.config, Text(np.ones((7, 8), np.int32)), (), candidates(model.config, ()), how)
    values, train = {"model": "llama3-8b", "calibration": "x", "rows": 4, "states": 2}, TrainSettings()
    settings = dataclasses.replace(prune.PRESETS["paper"], train=train, blocks=1, **values)
    found = plan_of(prune.parts(settings), Ask("v5e-4", rows=7))
    whole, branch, loss = found
    assert programs(found)[0] == SearchLayer(4, 2048, 2, whole.request.program.waiting, whole.request.program.beside)
    assert isinstance(branch.request.program, SearchLayer) and branch.request.program.states == 1
    assert isinstance(loss.request.program, SearchLoss)
    layers = whole.request.model["num_hidden_layers"]

    def calls(layers):
        return 2 * sum(-(-(1 + 2 * layer) // 2) for layer in range(layers))

    assert counted == {(2, 2): calls(3), (1, 1): 2 * 2 * 3}
    assert (whole.times, branch.times, loss.times) == (calls(layers), 2 * layers, 2 * -(-(1 + 2 * layers) // 2))
    state = 2 * 4 * 2048 * 4096  # bytes of a candidate's rows
    assert whole.request.program.waiting == 2 * state * (-(-(1 + 2 * layers) // 2) - 1)


def test_a_prompt_of_known_length_is_shared():
    planned = plan_of(dpo.parts(PAIRS), dataclasses.replace(LLAMA, prompt=1000))[0]
    assert planned.request.program == TrainStep("dpo", 16, 1280, 1024, 8, "stored", "full")
    with pytest.raises(InputError, match="plan-prompt"):
        plan_of(dpo.parts(PAIRS), dataclasses.replace(LLAMA, prompt=2048))


def test_fusion_teachers_merges_and_samples_are_planned(tmp_path):
    found = plan_of(fusechat.parts(fusechat.PRESETS["openchat-7b"]), Ask("v6e-8", preset="openchat-7b"))
    read, step, tensor = programs(found)
    assert read == TeacherStep(8, 2048, 10)
    assert (step.objective, step.k) == ("fusion", 10)
    assert tensor == MergeTensor("sce", 3, (32002, 4096))
    found = plan_of(distil.parts(distil.PRESETS["llama3.2-1b"]), Ask("v6e-8", preset="llama3.2-1b"))
    read, step = programs(found)
    assert read == TeacherStep(8, 2048, 64) and (step.objective, step.k) == ("fusion", 64)
    found = plan_of(fusellm.parts(fusellm.PRESETS["llama2-7b"]), Ask("v6e-8", preset="llama2-7b"))
    assert [p.objective for p in programs(found)[1:]] == ["fusion"]
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps({
        "merge_method": "ties", "base_model": "llama3-8b", "parameters": {"weight": 0.5},
        "models": [{"model": "one"}, {"model": "two"}],
    }))  # fmt: skip
    found = plan_of(merge.parts(merge.Settings(str(recipe))), Ask("v5e-8"))
    assert programs(found) == [MergeTensor("ties", 2, (128256, 4096))]
    found = plan_of(generate.parts(generate.Settings(model="llama3-8b", mesh_tensor=8)), Ask("v5e-8"))
    assert [p.request.mesh for p in found] == [(1, 1, 8)] * 2


def test_live_teachers_are_held_beside_the_step():
    """Bytes a chip: the weights that training starts from and every live model's, the student's own among them."""
    stored = dataclasses.replace(distil.PRESETS["llama3.2-1b"], sources=("llama3-8b",), source_weights="int8")
    live, ask = dataclasses.replace(stored, teachers="live"), Ask("v6e-8", preset="llama3.2-1b")
    before, (*reads, step) = plan_of(distil.parts(stored), ask)[-1].request, plan_of(distil.parts(live), ask)
    assert [p.request.program.weights for p in reads] == ["stored", "int8"]
    small, large = (parameter_count(config_from_hf(PUBLIC[name])) for name in ("llama3.2-1b", "llama3-8b"))
    place = Place((1, 8, 1), 8)
    assert before.program.weights_beside(small, place) == 2 * small // 8
    assert step.request.program.weights_beside(small, place) == (2 * small + 2 * small + large) // 8
    assert from_json(to_json(step.request)) == step.request
    spare = dataclasses.replace(live, train=dataclasses.replace(live.train, mesh_spare=4))
    with pytest.raises(InputError, match=r"mesh-spare.*planned on the same chips"):
        plan_of(distil.parts(spare), ask)


@pytest.mark.parametrize("args, message", [
    (["--plan", "v5e-17"], "v5e-16"), (["--plan", "v5e-16", "--model", "nowhere"], "llama3-70b"),
    (["--preset", "llama3-8b", "--plan", "v5e-256"], "does not divide over 256 chips"),
])  # fmt: skip
def test_bad_plans_end_with_one_line(args, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "check_compiler", lambda: None)
    with pytest.raises(SystemExit) as end:
        command.run(sft.Settings, sft.main, sft.parts, presets=sft.PRESETS, description="", args=args)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_slice_that_is_none_is_told_before_a_missing_compiler(capsys, monkeypatch):
    monkeypatch.setattr(compile.importlib.util, "find_spec", lambda name: None)
    for place, said in (("v5e-17", "no slice is called"), ("v5e-16", "libtpu")):
        with pytest.raises(SystemExit):
            command.run(sft.Settings, sft.main, sft.parts, description="", args=["--plan", place])
        assert said in capsys.readouterr().err


def test_a_run_without_plan_is_a_run(monkeypatch):
    seen = []
    command.run(sft.Settings, seen.append, sft.parts, presets=sft.PRESETS, description="", args=["--out", "x"])
    assert seen == [dataclasses.replace(sft.PRESETS["tiny"], out="x")]


@pytest.mark.parametrize("name", ["sft", "dpo", "wrpo", "fusellm", "fusechat", "distil", "cache_teacher", "generate", "merge"])
def test_help_tells_of_plan(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    with pytest.raises(SystemExit):
        presets = getattr(module, "PRESETS", None)
        command.run(module.Settings, module.main, module.parts, presets=presets, description="", args=["--help"])
    assert "--plan SLICE" in capsys.readouterr().out


def test_the_fusions_through_preferences_plan_their_stages():
    """With the public model of each preset, the rows of each loss, and every source's scoring."""
    ask = Ask("v5p-64", rows=1000, preset="llama3.1-8b")
    step, score, tune = planned = plan_of(fusechat3.parts(fusechat3.PRESETS["llama3.1-8b"]), ask)
    assert [type(program) for program in programs(planned)] == [TrainStep, ScoreStep, TrainStep]
    assert step.request.model["rope_scaling"]["factor"] == 8.0 and score.request.program.groups == 2
    assert (step.times, tune.times) == ((600 - 18) // 128, 3 * (400 // 128))
    settings = dataclasses.replace(fuserl.PRESETS["llama3-8b"], sources=("llama3-70b",) * 4)
    step, score, tune = programs(plan_of(fuserl.parts(settings), dataclasses.replace(ask, preset="llama3-8b")))
    assert (step.objective, step.groups, score.groups) == ("several", 8, 8)
    assert (tune.objective, tune.groups) == ("several", 4)
    settings = dataclasses.replace(infifpo.PRESETS["qwen2.5-14b"], sources=("llama3-70b", "qwen2.5-72b"))
    planned = plan_of(infifpo.parts(settings), Ask("v6e-16", rows=1000, preset="qwen2.5-14b"))
    scoring = [p for p in planned if p.title.startswith("log-probs by")]
    assert [p.request.model["hidden_size"] for p in scoring] == [8192, 8192] and len(planned) == 7
    assert all(p.request.program == ScoreStep(16, 4096, 2, shared_prompt=False) for p in scoring)


def test_a_plan_of_several_rows_and_of_a_repetition_penalty_travels_as_json():
    decode = Decode(2, 64, 32, 2, Sampler(0.7, 0.8, 0, 1.05))
    for program in (TrainStep("several", 8, 128, rows=6), decode, BeamDecode(2, 64, 32, 4)):
        request = Request("v5e-8", PUBLIC["llama3-8b"], program)
        assert from_json(json.loads(json.dumps(to_json(request)))) == request
