"""LoRA against PEFT in PyTorch: gradients, folders out and in; runs that resume; what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from rich.console import Console
from safetensors.numpy import load_file, save_file

import fusion_jax as fj
from fusion_jax import InputError
from fusion_jax.data.batches import Data, Example, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.families import config_from_hf, config_to_hf
from fusion_jax.models.folder import Model, check_folder, load, logits, save
from fusion_jax.models.lora import (
    Adapter,
    Lora,
    abstract_adapters,
    adapter_tensors,
    check_lora,
    init_adapters,
    joined,
    merged,
)
from fusion_jax.models.parameters import abstract_params
from fusion_jax.models.peft_folder import save_adapter
from fusion_jax.plan.programs.training import TrainStep
from fusion_jax.plan.requests import Request, from_json, to_json
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sharding import make_mesh
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives, optimise
from fusion_jax.train.scores import score
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
from fusion_jax.train.step import make_train_step
from tests.parity.checkpoints import SMALL, write_checkpoint
from tests.quick import FAST
from tests.small import compiled

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
ROWS = np.random.default_rng(3).integers(3, 90, (2, 24))
EXAMPLES = [Example((tuple(map(int, row)),), (1 + i,), i) for i, row in enumerate(ROWS)]
LORA = Lora(4, 6.0)
SETTINGS = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-2), batch_size=2, micro_batches=1, log_every=1, epochs=3.0,
    eval_every=2, checkpoint_every=2, lora_rank=4, lora_alpha=6.0, compute_dtype="float32",
)  # fmt: skip


def of_torch(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(ROWS)).logits.numpy()


def base_of_torch(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def assert_close(actual: Any, expected: Any) -> None:
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "hf"
    write_checkpoint("llama-gqa-tied", folder, initializer_range=0.1)
    return folder


def trained_like(model: Model) -> Any:
    """Adapters whose B is not zero, as they are after some training."""
    adapters = init_adapters(model.config, LORA, 7)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), adapters)


@pytest.fixture(scope="module")
def adapter_folder(base, tmp_path_factory) -> Path:
    """Written here, of adapters that change the model."""
    model = load(base)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model.config, Adapter(LORA, trained_like(model), str(base)), folder)
    return folder


def loss_of(adapters: Any, model: Model) -> jax.Array:
    batch = jax.tree.map(jnp.asarray, collate(EXAMPLES, buckets_of(EXAMPLES)))
    found = score(joined(model.params, adapters, LORA.scale), model.config, batch, Compute())
    return -found.sequence.sum() / found.lengths.sum()


def test_gradients_are_those_of_peft(base, adapter_folder):
    """Of A and B of every linear module, in a model whose adapters are not zero."""
    model = load(base)
    adapters = trained_like(model)
    found = jax.jit(jax.grad(lambda adapters: loss_of(adapters, model)))(adapters)
    theirs = peft.PeftModel.from_pretrained(base_of_torch(base), adapter_folder, is_trainable=True)
    mask = torch.tensor([[0.0] * (i + 1) + [1.0] * (23 - i) for i in range(2)])
    logprobs = theirs(torch.tensor(ROWS)).logits.log_softmax(-1)[:, :-1]
    picked = logprobs.gather(-1, torch.tensor(ROWS)[:, 1:, None])[..., 0]
    (-(picked * mask[:, 1:]).sum() / mask[:, 1:].sum()).backward()
    expected = {n.replace(".default", ""): p.grad.numpy() for n, p in theirs.named_parameters() if p.requires_grad}
    ours = {name: np.asarray(stack[i]).T for name, stack, i in adapter_tensors(model.config, _adapter(found))}
    assert ours.keys() == expected.keys() and len(ours) == 2 * 7 * 3
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5 * largest, rtol=1e-5, err_msg=name)


def _adapter(params: Any) -> Any:
    return Adapter(LORA, params)


def test_peft_reads_what_is_written_and_the_merged_model_is_that(base, adapter_folder, tmp_path):
    model = load(base)
    adapters = trained_like(model)
    beside = dataclasses.replace(model, params=joined(model.params, adapters, LORA.scale))
    expected = of_torch(peft.PeftModel.from_pretrained(base_of_torch(base), adapter_folder))
    assert np.abs(expected - of_torch(base_of_torch(base))).max() > 0.1
    assert_close(compiled(logits, beside, ROWS), expected)
    assert_close(compiled(logits, dataclasses.replace(model, params=merged(beside.params)), ROWS), expected)
    save(beside, tmp_path / "model")
    assert_close(of_torch(base_of_torch(tmp_path / "model")), expected)
    for again in (load(adapter_folder), load(base, adapter=adapter_folder), load(tmp_path / "model")):
        assert_close(compiled(logits, again, ROWS), expected)
    assert check_folder(adapter_folder) == model.config
    made = [
        generate_ids(params, model.config, [[5, 6, 7], [8]], max_new_tokens=9, sampler=Sampler(0.0), stop_ids=())
        for params in (beside.params, merged(beside.params))
    ]
    assert [[one.ids for one in row] for row in made[0]] == [[one.ids for one in row] for row in made[1]]


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}}]
)
def test_a_folder_of_peft_is_read(more, base, tmp_path):
    """Of other modules, ranks and scales; as a model, and as a source of a merge, its base named or given beside it."""
    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj", "down_proj"], **more}
    theirs = peft.get_peft_model(base_of_torch(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn_like(value))
    theirs.save_pretrained(tmp_path / "peft")
    expected = of_torch(theirs)
    assert_close(compiled(logits, load(tmp_path / "peft"), ROWS), expected)
    assert load(tmp_path / "peft").folder == "" == load(base, adapter=tmp_path / "peft").folder  # no base of its own
    for name in (str(tmp_path / "peft"), f"{base}+{tmp_path / 'peft'}"):
        models = [{"model": name, "parameters": {"weight": 1.0}}, {"model": str(base), "parameters": {"weight": 0.0}}]
        out = tmp_path / f"merged{len(name)}"
        fj.merge.merge({"merge_method": "linear", "models": models}, out)
        assert_close(of_torch(base_of_torch(out)), expected)


def train(folder: Path, base: Path, **changes: Any) -> Model:
    folder.mkdir(exist_ok=True)
    settings = dataclasses.replace(SETTINGS, **changes)
    run = RunFolder(folder, Console(quiet=True))
    return optimise.optimise(load(base), Data(EXAMPLES), objectives.sft(), settings, run, held=Data(EXAMPLES))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory, quick_compiler) -> tuple[Path, Model]:
    """A run's folder and its model."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    return folder, train(folder, base)


def test_training_changes_adapters_alone_and_resumes(base, trained, tmp_path, monkeypatch):
    start, (folder, whole) = load(base), trained
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert losses[-1] < losses[0]
    assert_close(losses[0], float(loss_of(init_adapters(start.config, LORA, 0), start)))
    kernel = ("layers", "q", "kernel")
    assert np.array_equal(whole.params["layers"]["q"]["kernel"], start.params["layers"]["q"]["kernel"]), kernel
    assert (whole.adapter.base, whole.folder) == (str(base), "")
    stored = sum(f.stat().st_size for f in (folder / "checkpoints/3").rglob("*") if f.is_file())
    numbers = sum(x.size for x in jax.tree.leaves(whole.adapter.params))
    assert numbers == 4 * 3 * (2 * (48 + 48) + 2 * (48 + 24) + 3 * (48 + 80)) and stored < 3 * 4 * numbers + 60_000

    save_state = optimise.save_state

    def killed(checkpoints: Any, state: Any) -> None:
        save_state(checkpoints, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(optimise, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", base)
    monkeypatch.undo()
    again = train(tmp_path / "cut", base)
    for one, other in zip(*map(jax.tree.leaves, (whole.params, again.params)), strict=True):
        assert np.array_equal(one, other)


def test_accumulation_remat_and_rank_0(base, trained, tmp_path):
    _, one = trained
    for name, changes in {"parts": {"micro_batches": 2}, "remat": {"remat": "none"}}.items():
        other = train(tmp_path / name, base, **changes)
        for a, b in zip(*map(jax.tree.leaves, (one.adapter.params, other.adapter.params)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)
    unset = TrainSettings()
    plain = train(
        tmp_path / "plain",
        base,
        lora_rank=0,
        lora_alpha=unset.lora_alpha,
        lora_target_modules=unset.lora_target_modules,
    )
    assert plain.adapter is None and not np.array_equal(
        plain.params["embed"]["embedding"], one.params["embed"]["embedding"]
    )


@pytest.mark.usefixtures("quick_compiler")
def test_the_reference_is_the_base(base, tmp_path):
    """DPO's reference, stored and in the step: at the start the margin is zero."""
    pairs = [Example((tuple(map(int, ROWS[0])), tuple(map(int, ROWS[1]))), (4, 4), i) for i in range(2)]
    losses = {}
    for reference in ("stored", "in-step"):
        folder = tmp_path / reference
        folder.mkdir()
        settings = dataclasses.replace(SETTINGS, reference=reference, checkpoint_every=9, eval_every=9)
        run = RunFolder(folder, Console(quiet=True))
        optimise.optimise(load(base), Data(pairs), objectives.pair(objectives.PairSettings(beta=1.0)), settings, run)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[reference] = [line["loss"] for line in lines]
    assert losses["stored"][0] == pytest.approx(np.log(2), abs=1e-5) and losses["stored"][-1] < 0.6
    np.testing.assert_allclose(losses["stored"], losses["in-step"], atol=1e-4)


def test_what_cannot_have_adapters_is_told(tmp_path):
    for name, lora, said in (
        ("llama-mha", Lora(2, 2, ("q_proj", "qkv_proj")), "'lora_target_modules': the layers have no linear module 'qkv_proj'.*Known: down_proj"),
        ("phi3", Lora(2, 2), "'gate_up_proj' is several parts in one tensor.*Give some of down_proj, o_proj"),
        ("mixtral", Lora(2, 2), "no adapter is trained for it. Give some of k_proj, o_proj, q_proj, v_proj"),
        ("deepseek-v2", Lora(2, 2, ("kv_b_proj",)), "'kv_b_proj' is several parts in one tensor, or of experts"),
    ):  # fmt: skip
        write_checkpoint(name, tmp_path / name)
        with pytest.raises(InputError, match=said):
            check_lora(check_folder(tmp_path / name), lora)
    check_lora(check_folder(tmp_path / "phi3"), Lora(2, 2, ("o_proj", "down_proj")))
    write_checkpoint("llama-mha", tmp_path / "judge", classifier=True)
    with pytest.raises(InputError, match=r"'--train.lora-rank': a reward model's head has no adapter"):
        check_lora(check_folder(tmp_path / "judge"), LORA, "--train.lora")


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", ["deepseek-v2", "mixtral", "gemma3", "glm4", "gpt-neox"])
def test_every_adapter_that_may_be_trained_counts(name, tmp_path):
    """Each B has a gradient that is not zero: no adapter stands beside a kernel that is read otherwise."""
    write_checkpoint(name, tmp_path)
    model = load(tmp_path)
    try:
        check_lora(model.config, LORA)
        lora = LORA
    except InputError as told:
        lora = dataclasses.replace(LORA, modules=tuple((told.cure or "").removeprefix("Give some of ").split(", ")))
    found = jax.jit(jax.grad(lambda adapters: loss_of(adapters, model)))(init_adapters(model.config, lora, 0))
    b = {path: x for path, x in jax.tree_util.tree_leaves_with_path(found) if path[-1].key == "lora_b"}
    assert len(b) >= 2 and all(np.abs(np.asarray(x)).max((1, 2)).min() > 0 for x in b.values()), b.keys()


def test_settings_of_adapters_need_a_rank():
    for name, value in (("lora_target_modules", ("q_proj",)), ("lora_alpha", 32.0)):
        with pytest.raises(InputError, match=f"'{name}': is for adapters, and there is no lora_rank"):
            TrainSettings(**{name: value})


def test_adapters_that_are_refused(base, adapter_folder, tmp_path):
    config, tensors = "adapter_config.json", "adapter_model.safetensors"
    one = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def folder() -> Path:
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return shutil.copytree(adapter_folder, tmp_path / "a")

    for changes, said in (
        ({"peft_type": "IA3"}, "'peft_type': 'IA3' is not read"), ({"use_dora": True}, "'use_dora': is True"),
        ({"r": 8}, f"'{one}': has rank 4, adapter_config.json gives 8"), ({"r": "4"}, "'r': is '4'"),
        ({"bias": "all"}, "'bias': is 'all'"), ({"fan_in_fan_out": True}, "'fan_in_fan_out'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save': is list of 1"), ({"lora_alpha": -1}, "'lora_alpha'"),
        ({"base_model_name_or_path": "meta-llama/x"}, "'base_model_name_or_path': 'meta-llama/x' is no folder here"),
        ({"base_model_name_or_path": None}, "'base_model_name_or_path': is missing"),
        ({"base_model_name_or_path": ""}, "'base_model_name_or_path': '' is no folder here"),
        ({"init_lora_weights": "pissa_niter_4"}, "'init_lora_weights': is 'pissa_niter_4', which changes the base"),
        ({"rank_pattern": {"q_proj(": 4}}, "'rank_pattern.q_proj\\(': is no pattern"),
    ):  # fmt: skip
        values = json.loads((folder() / config).read_text()) | changes
        (tmp_path / "a" / config).write_text(json.dumps(values))
        for use in (load, check_folder):
            with pytest.raises(InputError, match=said):
                use(tmp_path / "a")
    changed: Any
    for changed, said in (
        (lambda t: t.pop(one), f"'{one}': the matrix is missing"),
        (lambda t: t.update({one: t[one][:2]}), "lora_B.weight': has rank 4, its other half 2"),
        (lambda t: t.update({one: t[one][:, :5]}), f"'{one}': and its other half make \\(48, 5\\), the base model has"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": t[one], "base_model.model.x.lora_B.weight": t[one].T}), "no x.weight for"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": t[one]}), "is no LoRA matrix"),
        (lambda t: t.clear(), "holds no LoRA matrix"),
    ):  # fmt: skip
        values = load_file(folder() / tensors)
        changed(values)
        save_file({k: np.ascontiguousarray(v) for k, v in values.items()}, tmp_path / "a" / tensors)
        with pytest.raises(InputError, match=f"{tensors}.*{said}"):
            load(tmp_path / "a")
    (folder() / tensors).rename(tmp_path / "a/adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model.bin: holds a pickled adapter, which is not read"):
        load(tmp_path / "a")
    (tmp_path / "a/adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"holds no adapter_model.safetensors"):
        load(tmp_path / "a")
    with pytest.raises(InputError, match=r"holds no adapter_config.json"):
        load(base, adapter=base)


def test_no_gradient_of_a_frozen_weight_is_computed(base):
    """The compiled step multiplies nothing into the shape of a kernel or of the head."""
    config = dataclasses.replace(check_folder(base), vocab_size=90)
    optimizer = make_optimizer(OptimizerSettings())
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], collate(EXAMPLES, buckets_of(EXAMPLES)))
    shapes = {}
    for lora in (None, Lora(3, 6.0)):
        trained = abstract_params(config) if lora is None else abstract_adapters(config, lora)
        state = jax.eval_shape(lambda params: init_state(params, optimizer), trained)
        step = make_train_step(config, objectives.sft(), optimizer, Compute(remat="full"), lora=lora)
        start = () if lora is None else (abstract_params(config, jnp.bfloat16),)
        text = step.lower(state, batch, Pace(4, 1e-2), *start).compile(compiler_options=FAST).as_text()
        shapes[lora] = set(re.findall(r"= f32\[([0-9,]*)\]\S* (?:dot|custom-call)\(", text))
    kernels = {"48,80", "80,48", "48,48", "48,24", "90,48"}
    assert shapes[None] & kernels == kernels and not shapes[Lora(3, 6.0)] & kernels, (shapes, kernels)


def test_a_plan_counts_adapters_and_frozen_weights():
    values = config_to_hf(config_from_hf({"model_type": "llama", **SMALL, "hidden_size": 64, "head_dim": 16}))
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    sizes = {}
    for lora in (None, Lora(2, 4.0, ("q_proj",))):
        request = Request(
            "v5p-8", values, TrainStep("dpo", 4, 16, reference="in-step", lora=lora, attention="xla"), (1, 1, 1)
        )
        again = from_json(json.loads(json.dumps(to_json(request))))
        assert again == request
        leaves = jax.tree.leaves(again.program.trace(again.config, mesh).in_avals)
        sizes[lora] = sum(x.size * x.dtype.itemsize for x in leaves)
    numbers, adapters = sum(x.size for x in jax.tree.leaves(abstract_params(again.config))), 3 * 2 * (64 + 64)
    assert sizes[None] - 14 * numbers == sizes[Lora(2, 4.0, ("q_proj",))] - 2 * numbers - 12 * adapters
