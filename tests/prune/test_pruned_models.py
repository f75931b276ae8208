"""A pruned model in the other rooms: trained, with adapters, planned, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import fusion_jax as fj
from fusion_jax.data.batches import Data, Example, buckets_of, collate
from fusion_jax.errors import InputError
from fusion_jax.merge import merge
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decode import nothing_kept
from fusion_jax.models.families import config_from_hf, pruned
from fusion_jax.models.folder import Model
from fusion_jax.models.identity import described, fingerprint
from fusion_jax.models.lora import Adapter, Lora, init_adapters, joined
from fusion_jax.models.peft_folder import save_adapter
from fusion_jax.plan.flops import body_parameters, parameter_count
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.programs import Decode, TeacherStep, TrainStep
from fusion_jax.prune.blocks import Block, parameters_of
from fusion_jax.prune.export import served
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives, optimise
from fusion_jax.train.scores import score
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from tests.parity.checkpoints import write_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiler")

REMOVED = {Block("attention", 0), Block("attention", 2), Block("mlp", 2), Block("mlp", 3)}
ROWS = np.random.default_rng(3).integers(3, 90, (2, 24))
EXAMPLES = [Example((tuple(map(int, row)),), (1 + i,), i) for i, row in enumerate(ROWS)]
SETTINGS = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-2), batch_size=2, micro_batches=1, log_every=1, epochs=3.0,
    checkpoint_every=1, compute_dtype="float32",
)  # fmt: skip


def both(folder: Path, name: str = "llama-gqa-tied") -> tuple[Model, Model]:
    """A model without its blocks, and with blocks that add nothing."""
    write_checkpoint(name, folder / name, num_hidden_layers=4)
    whole = fj.load(folder / name)
    return served(whole, REMOVED, "native"), served(whole, REMOVED)


def loss(params: Any, config: ModelConfig) -> jax.Array:
    batch = jax.tree.map(jnp.asarray, collate(EXAMPLES, buckets_of(EXAMPLES)))
    found = score(params, config, batch, Compute())
    return -found.sequence.sum() / found.lengths.sum()


@pytest.mark.parametrize("name", ["llama-gqa-tied", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_model_with_silent_blocks(name, tmp_path):
    """Loss and the gradient of every parameter that is there, whole layers being gone from one of the two."""
    small, silent = both(tmp_path, name)
    one, mine = jax.jit(jax.value_and_grad(loss), static_argnums=1)(small.params, small.config)
    other, theirs = jax.jit(jax.value_and_grad(loss), static_argnums=1)(silent.params, silent.config)
    assert float(one) == pytest.approx(float(other), rel=1e-6)
    place, compared = 0, 0
    for name, stack in small.config.stacks.items():
        for number in range(0 if stack.empty else stack.layers):
            for path, value in jax.tree_util.tree_leaves_with_path(mine[name]):
                own = theirs["layers"]
                for key in path:
                    own = own[key.key]
                np.testing.assert_allclose(value[number], own[place], rtol=2e-4, atol=1e-6 * float(jnp.abs(own).max()))
                compared += 1
            place += 1
    assert place == 3 and compared > 15
    np.testing.assert_allclose(mine["embed"]["embedding"], theirs["embed"]["embedding"], rtol=2e-4, atol=1e-6)


def test_training_saves_and_resumes_a_model_without_a_layer(tmp_path, monkeypatch):
    """Checkpoints of a model of which a stack has no parameters; no lost block comes back."""
    small, silent = both(tmp_path)
    assert any(stack.empty for stack in small.config.decoder)

    def train(name: str) -> Model:
        (tmp_path / name).mkdir(exist_ok=True)
        run = RunFolder(tmp_path / name, Console(quiet=True))
        return optimise.optimise(small, Data(EXAMPLES), objectives.sft(), SETTINGS, run)

    trained = train("run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(float(loss(silent.params, silent.config)), rel=1e-5) and losses[-1] < losses[0]
    fj.save(trained, tmp_path / "out")
    again = fj.load(tmp_path / "out")
    assert again.config == small.config and pruned.lost_of(again.config) == REMOVED
    save_state = optimise.save_state

    def killed(checkpoints: Any, state: Any) -> None:
        save_state(checkpoints, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(optimise, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    monkeypatch.undo()
    resumed = train("cut")
    for one, other in zip(*map(jax.tree.leaves, (trained.params, resumed.params)), strict=True):
        assert np.array_equal(one, other)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(again.params))


def test_adapters(tmp_path):
    """For the modules that are there, under the names of the whole model's; a PEFT folder on a native one is read."""
    small, silent = both(tmp_path)
    fj.save(small, tmp_path / "native")
    lora = Lora(4, 6.0)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    start = init_adapters(small.config, lora, 7)
    adapters = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), start)
    save_adapter(small.config, Adapter(lora, adapters, str(tmp_path / "native")), tmp_path / "peft")
    wanted = fj.logits(Model(small.config, joined(small.params, adapters, lora.scale)), ROWS)
    assert not np.allclose(wanted, fj.logits(silent, ROWS), atol=1e-2)
    np.testing.assert_allclose(fj.logits(fj.load(tmp_path / "peft"), ROWS), wanted, atol=2e-5)
    beside = Model(small.config, joined(small.params, adapters, lora.scale))
    np.testing.assert_allclose(fj.logits(served(beside, ()), ROWS), wanted, atol=2e-5)


def test_int8_is_not_exported(tmp_path):
    write_checkpoint("llama-mha", tmp_path / "hf")
    with pytest.raises(InputError, match="weights in int8 cannot be exported"):
        served(fj.load(tmp_path / "hf", dtype="int8"), {Block("mlp", 0)}, "native")


def test_plans_count_what_is_there():
    """Llama-3-8B without 10 attention and 4 feed-forward blocks: parameters, FLOPs, cache."""
    values = PUBLIC["llama3-8b"]
    lost = {("attention", i) for i in range(20, 30)} | {("mlp", i) for i in range(20, 24)}
    whole, small = config_from_hf(values), config_from_hf(pruned.to_hf(values, lost))
    assert parameter_count(small) == parameters_of(whole, [Block(*one) for one in lost])
    attention, mlp = 4096 * 4096 * 2 + 4096 * 1024 * 2, 3 * 4096 * 14336
    assert body_parameters(whole) - body_parameters(small) == 10 * attention + 4 * mlp
    step = TeacherStep(1, 4096)
    pairs = 4 * 32 * 128 * 4096**2 / 2
    assert step.flops(whole) - step.flops(small) == pytest.approx(2 * 4096 * (10 * attention + 4 * mlp) + 10 * pairs)
    decode = Decode(1, 1024, 512)
    reads = 512 * (2 * (10 * attention + 4 * mlp) + 10 * 4 * 32 * 128 * (1024 + 256))
    assert decode.flops(whole) - decode.flops(small) == pytest.approx(reads)
    train = TrainStep("sft", examples=4, tokens=1024)
    assert train.kernel_share(whole) == train.kernel_share(small) != 0
    held = [sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda c=c: nothing_kept(c, 2, 64, jnp.bfloat16))))
            for c in (whole, small)]  # fmt: skip
    assert held[1] * 32 == held[0] * 22


def test_what_a_pruned_model_is_known_by():
    """Models that differ in their blocks alone are told apart; a whole one is called as before."""
    values = PUBLIC["llama3-8b"] | {"num_hidden_layers": 2}
    whole = config_from_hf(values)
    one, other = (config_from_hf(pruned.to_hf(values, {(part, 1)})) for part in ("attention", "mlp"))
    assert len({described(whole), described(one), described(other)}) == 3 and "lacks" not in described(whole)
    assert fingerprint({"layers": {}}) == fingerprint({})


def test_a_merge_refuses_it_and_takes_its_served_form(tmp_path):
    small, silent = both(tmp_path)
    for name, model in (("native", small), ("hf", silent), ("again", silent)):
        fj.save(model, tmp_path / name)

    def linear(*names: str) -> None:
        models = [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in names]
        merge({"merge_method": "linear", "models": models}, tmp_path / "out")

    with pytest.raises(InputError, match=r'native: is a pruned model, .*Save it in the form "hf" first'):
        linear("hf", "native")
    linear("hf", "again")
    np.testing.assert_allclose(fj.logits(fj.load(tmp_path / "out"), ROWS), fj.logits(silent, ROWS), atol=1e-5)


def test_layers_of_nemotron_are_stacked(tmp_path):
    """A recipe of slices takes each layer's settings with the layer."""
    write_checkpoint("llama-mha", tmp_path / "hf", num_hidden_layers=4, intermediate_size=256)
    nas = served(fj.load(tmp_path / "hf"), {Block("attention", 1), Block("mlp", 2)}, "nemotron-nas")
    fj.save(nas, tmp_path / "nas")
    sources = [{"sources": [{"model": str(tmp_path / "nas"), "layer_range": [a, b]}]} for a, b in ((0, 2), (1, 4))]
    merge({"merge_method": "passthrough", "slices": sources}, tmp_path / "out")
    out = fj.load(tmp_path / "out")
    lacks = [sorted(stack.lacks) for stack in out.config.decoder for _ in range(stack.layers)]
    assert lacks == [[], ["attention"], ["attention"], ["mlp"], []]
