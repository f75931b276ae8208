"""What a run would refuse after hours is refused before its first stage, and names an option that the experiment has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import dpo, fusechat, fusellm, sft, wrpo
from experiments import generate as generate_script
from fusion_jax.errors import InputError
from fusion_jax.models.parameters import check_heads
from fusion_jax.plan import fits
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.parts import plan_of
from fusion_jax.plan.runs import Ask
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sampling.ids import decoding_ways
from fusion_jax.train.settings import TrainSettings
from tests.small import attempt, fails, pairs, small_folder, small_model, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

QWEN = PUBLIC["qwen2.5-7b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("fits") / "model")


@pytest.mark.parametrize(("tensor", "wanted"), [(8, "28 attention heads do not divide by 8"), (7, "8 devices")])
def test_heads_that_the_devices_do_not_divide(tensor, wanted):
    config = small_model(num_attention_heads=28, num_key_value_heads=4, head_dim=2).config
    with pytest.raises(InputError, match=rf"--train.mesh-tensor.*{wanted}.*Give one of 1, 2, 4") as refused:
        check_heads(config, tensor, 8, "--train.mesh-tensor")
    assert refused.value.field == "--train.mesh-tensor"
    with pytest.raises(InputError, match=r"--sample.mesh-tensor"):
        decoding_ways(config, 8, tensor, "--sample.mesh-tensor")
    assert decoding_ways(config, 8) == 4


@pytest.mark.parametrize(("planned", "option"), [
    (lambda ask, t: plan_of(sft.parts(sft.Settings(model="qwen2.5-7b", train=t)), ask), "--train.mesh-tensor"),
    (lambda ask, t: plan_of(dpo.parts(dpo.Settings(model="qwen2.5-7b", train=t)), ask), "--train.mesh-tensor"),
    (lambda ask, t: plan_of(wrpo.parts(wrpo.Settings(target="qwen2.5-7b", preference=t)), ask), "--preference.mesh-tensor"),
    (lambda ask, t: plan_of(wrpo.parts(wrpo.Settings(target="qwen2.5-7b", sft=t)), ask), "--sft.mesh-tensor"),
    (lambda ask, t: plan_of(wrpo.parts(wrpo.Settings(target="qwen2.5-7b", sample=SampleSettings(mesh_tensor=8))), ask),
     "--sample.mesh-tensor"),
    (lambda ask, t: plan_of(fusellm.parts(fusellm.Settings(target="qwen2.5-7b", train=t)), ask), "--train.mesh-tensor"),
    (lambda ask, t: plan_of(fusechat.parts(fusechat.Settings(pivot="qwen2.5-7b", train=t)), ask), "--train.mesh-tensor"),
    (lambda ask, t: plan_of(generate_script.parts(generate_script.Settings(model="qwen2.5-7b", mesh_tensor=8)), ask),
     "--mesh-tensor"),
])  # fmt: skip
def test_a_plan_names_the_option_that_cuts_a_head(planned, option):
    with pytest.raises(InputError, match=r"28 attention heads do not divide by 8.*1, 2, 4") as refused:
        planned(Ask("v5e-16"), TrainSettings(mesh_tensor=8))
    assert refused.value.field == option


def test_a_plan_reads_teachers_on_the_mesh_of_the_run():
    train = TrainSettings(mesh_tensor=4)
    for parts, settings in (
        (fusellm.parts, fusellm.Settings(target="qwen2.5-7b", train=train)),
        (fusechat.parts, fusechat.Settings(pivot="qwen2.5-7b", train=train)),
    ):
        assert plan_of(parts(settings), Ask("v5e-64"))[0].request.mesh == (1, 16, 4)
        assert plan_of(parts(settings), Ask("v5e-64"))[0].request.program.rows == 16


def test_rows_as_long_as_the_positions_and_one_token_more_fit(folder):
    fits.check_length(folder, 129, "--text.tokens.max-length")  # the last token is only predicted
    with pytest.raises(InputError, match=r"--text.tokens.max-length.*130 tokens.*128 positions.*128 or less"):
        fits.check_length(folder, 130, "--text.tokens.max-length")


@pytest.mark.parametrize(("experiment", "option"), [(sft, "--model"), (dpo, "--model"), (wrpo, "--target")])
def test_rows_longer_than_the_positions_are_refused_first(experiment, option, folder, tmp_path, capsys):
    args = [option, str(folder), "--text.tokens.max-length", "130", "--out", str(tmp_path / "out")]
    fails(experiment, args, capsys, "--text.tokens.max-length", "130 tokens", "128 positions")
    assert not list(tmp_path.glob("out/responses/*"))


@pytest.mark.parametrize(("options", "wanted"), [
    (["--sample.max-new-tokens", "200"], "--sample.max-new-tokens"),
    (["--eval-new-tokens", "200"], "--eval-new-tokens"),
])  # fmt: skip
def test_prompts_that_leave_no_room_are_refused_before_anything_is_sampled(options, wanted, folder, tmp_path, capsys):
    args = ["--target", str(folder), "--sources", "zoo:llama-source", "--out", str(tmp_path / "out"), *options]
    fails(wrpo, args, capsys, wanted, "new ones exceed the model's")
    assert not list(tmp_path.glob("out/responses/*"))


@pytest.mark.parametrize("experiment", [fusellm, fusechat])
def test_judging_that_leaves_no_room_is_refused_before_teachers_read(experiment, folder, tmp_path, capsys):
    option = "--target" if experiment is fusellm else "--pivot"
    args = [option, str(folder), "--sources", "zoo:llama-source", "--out", str(tmp_path / "out")]
    fails(experiment, [*args, "--eval-new-tokens", "200"], capsys, "--eval-new-tokens", "128 positions")
    assert not list(tmp_path.glob("out/teachers/*"))


def test_a_reward_model_must_have_room_for_prompt_and_answer(folder):
    prompts = [{"prompt_id": "long", "prompt": "word " * 60}]
    with pytest.raises(InputError, match=r"record long, field '--sample.max-new-tokens'.*exceed the model's 128"):
        fits.check_judged(folder, prompts, 100, "--sample.max-new-tokens")
    fits.check_judged(folder, [{"prompt": "a"}], 28, "--sample.max-new-tokens")


@pytest.mark.parametrize("packing", ["none", "official"])
def test_a_target_whose_positions_are_the_length_of_the_texts_is_trained(packing, tmp_path):
    """The target reads all texts whole; the token behind a row, which predicts nothing, needs no position."""
    target = small_folder(tmp_path / "target", max_position_embeddings=32)
    source = small_folder(tmp_path / "source", max_position_embeddings=64)
    texts = write(tmp_path / "texts.jsonl", [{"text": f"{p['prompt']} {p['chosen']} " * 4} for p in pairs(8)])
    args = [
        "--target", str(target), "--sources", str(source), "--texts", str(texts), "--packing", packing, "--arms", "CLM",
        "--max-length", "32", "--train.batch-size", "4", "--train.epochs", "0.2",
        "--train.optimizer.warmup-ratio", "0", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    attempt(fusellm, args)
    assert (tmp_path / "out/model/config.json").exists()
    assert json.loads((tmp_path / "out/model/config.json").read_text())["max_position_embeddings"] == 32
