"""Slices by their cloud names; useful FLOPs against the formulas and published sizes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.plan.flops import body_parameters, head_parameters, parameter_count
from fusion_jax.plan.models import PUBLIC, config_named
from fusion_jax.plan.programs import Decode, MergeTensor, ScoreStep, TeacherStep, TrainStep
from fusion_jax.plan.requests import Request, from_json, to_json, tokens_of, useful_flops
from fusion_jax.slices import CHIPS, compiler_options, slice_of

LLAMA = PUBLIC["llama3-8b"]
PARAMETERS = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096


@pytest.mark.parametrize("name, topology, chips, wrapped", [
    ("v5e-16", "v5e:4x4", 16, (False, False)), ("v5e-256", "v5e:16x16", 256, (True, True)),
    ("v5litepod-128", "v5e:8x16", 128, (False, True)), ("v6e-8", "v6e:2x4", 8, (False, False)),
    ("v5p-8", "v5p:2x2x1", 4, (False,) * 3), ("v5p-64", "v5p:2x4x4", 32, (False,) * 3),
    ("v5p-128", "v5p:4x4x4", 64, (True,) * 3), ("v4-64", "v4:2x4x4", 32, (False,) * 3),
])  # fmt: skip
def test_cloud_names_count_chips_or_cores(name, topology, chips, wrapped):
    found = slice_of(name)
    assert (found.topology, found.chips, found.wrapped) == (topology, chips, wrapped)


@pytest.mark.parametrize("name, near", [("v5e-17", "v5e-16"), ("v5p-16x", "v5p-16"), ("v7", "v4-8")])
def test_an_unknown_slice_names_those_near(name, near):
    with pytest.raises(InputError, match=near):
        slice_of(name)


@pytest.mark.parametrize("name, billions", [
    ("llama3-8b", 8.030), ("llama3-70b", 70.554), ("llama2-7b", 6.738), ("llama2-13b", 13.016), ("mistral-7b", 7.242),
    ("qwen2.5-7b", 7.616), ("qwen2.5-72b", 72.706),
])  # fmt: skip
def test_known_models_have_their_published_sizes(name, billions):
    assert parameter_count(config_from_hf(PUBLIC[name])) / 1e9 == pytest.approx(billions, abs=0.001)


def test_a_folder_needs_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert config_named(tmp_path) == LLAMA
    with pytest.raises(InputError, match="llama3-70b"):
        config_named("llama4", "--target")


def test_a_plain_step_takes_six_flops_a_parameter_and_token_and_causal_attention():
    config, t = config_from_hf(LLAMA), 2048
    assert body_parameters(config) + head_parameters(config) == PARAMETERS
    step = TrainStep("wrpo", examples=16, tokens=t, micro_batches=2, reference="stored")
    request = Request("v5e-16", LLAMA, step)
    tokens = 16 * 2 * 3 * t
    plain = 6 * PARAMETERS * tokens + 6 * 32 * 32 * 128 * t * tokens
    assert tokens_of(request) == tokens
    assert useful_flops(request) == plain
    in_step = dataclasses.replace(request, program=dataclasses.replace(step, reference="in-step"))
    assert useful_flops(in_step) == pytest.approx(plain * 4 / 3)
    score = Request("v5e-16", LLAMA, ScoreStep(32, t, 3))
    assert useful_flops(score) == pytest.approx(plain / 3)
    assert useful_flops(Request("v5e-16", LLAMA, TeacherStep(96, t))) == pytest.approx(plain / 3)


def test_a_shared_prompt_counts_once():
    step = TrainStep("wrpo", examples=1, tokens=1024, prompt=1024, reference="stored")
    shared = Request("v5p-64", LLAMA, step)
    apart = dataclasses.replace(shared, program=dataclasses.replace(step, shared_prompt=False))
    assert (tokens_of(shared), tokens_of(apart)) == (4 * 1024, 6 * 1024)
    body, head = PARAMETERS - 128256 * 4096, 128256 * 4096
    pair = 12 * 32 * 32 * 128
    assert useful_flops(shared) == 6 * body * 4096 + 6 * head * 3072 + pair * (0.5 + 3 * 1.5) * 1024**2
    assert useful_flops(apart) == 6 * body * 6144 + 6 * head * 3072 + pair * 3 * 2 * 1024**2


def test_windows_limit_the_pairs_of_attention():
    windowed = PUBLIC["mistral-7b"] | {"sliding_window": 1024}
    of = [useful_flops(Request("v5e-8", c, TeacherStep(1, 4096))) for c in (PUBLIC["mistral-7b"], windowed)]
    assert of[0] - of[1] == pytest.approx(4 * 32 * 32 * 128 * (4096**2 / 2 - (1024 * 4096 - 1024**2 / 2)))


def test_decoding_counts_every_token_over_the_keys_before_it():
    request = Request("v5e-8", LLAMA, Decode(32, 1024, 512, 2))
    assert tokens_of(request) == 32 * 2 * 512
    assert useful_flops(request) == 32 * 2 * 512 * (2 * PARAMETERS + 4 * 32 * 32 * 128 * (1024 + 256))


@pytest.mark.parametrize("program", [
    TrainStep("fusion", 8, 128, k=4), ScoreStep(8, 128, 2), TeacherStep(8, 128), Decode(2, 64, 32), MergeTensor("sce", 2, (64, 8)),
])  # fmt: skip
def test_requests_travel_as_json(program):
    request = Request("v5e-8", LLAMA, program, (1, 4, 2))
    assert from_json(json.loads(json.dumps(to_json(request)))) == request


@pytest.mark.parametrize(("kind", "chip"), [("TPU v5p", "v5p"), ("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("cpu", "")])
def test_a_run_compiles_as_its_plan_does(kind, chip):
    assert compiler_options(kind) == (CHIPS[chip].compiler_options if chip else {})


@pytest.mark.parametrize(("shared", "share"), [(False, 1.25), (True, 0.75)])
def test_an_attention_kernel_works_on_tiles_that_hold_anything_seen(shared, share):
    """Of 4 x 4 tiles 10; of 8 x 8 tiles 3 of the prompt and for each of 3 branches 4 of the prompt and 3 of its own."""
    step = TrainStep("wrpo", 4, 1024, prompt=1024, shared_prompt=shared)
    config = config_from_hf(config_named("llama3-8b", "--model"))
    assert step.kernel_share(config) == share
