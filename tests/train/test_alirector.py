"""Alirector's step against the same in PyTorch: a corrector, two frozen alignment models, loss and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fusion_jax.data.batches import Data, Example, TokenBatch, buckets_for, collate
from fusion_jax.losses.reductions import divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import Model, load
from fusion_jax.train.alirector import TEACHERS, AlirectorSettings, alirector, corrector
from fusion_jax.train.objective import Given, Objective, Progress
from fusion_jax.train.step import scores_of
from tests.quick import FAST

BART = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "decoder_start_token_id": 3, "dropout": 0.0, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip
LLAMA = {
    "vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 48,
}  # fmt: skip
SETTINGS = [
    AlirectorSettings(), AlirectorSettings(beta=1.0, alpha=0.3, kind="reverse"),
    AlirectorSettings(kind="both", alpha=0.8), AlirectorSettings(average="logits", alpha=0.3),
    AlirectorSettings(average="logits", kind="reverse"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bart(tmp_path_factory) -> tuple[list[Any], list[Model]]:
    config = transformers.BartConfig(**BART)
    return made(tmp_path_factory.mktemp("bart"), transformers.BartForConditionalGeneration, config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[list[Any], list[Model]]:
    config = transformers.LlamaConfig(**LLAMA)
    return made(tmp_path_factory.mktemp("llama"), transformers.LlamaForCausalLM, config)


def made(folder: Path, kind: Any, config: Any) -> tuple[list[Any], list[Model]]:
    """Corrector and alignment models, in PyTorch and here, from the same folders."""
    theirs, ours = [], []
    for number in range(3):
        torch.manual_seed(number)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
        model.save_pretrained(folder / str(number))
        theirs.append(model)
        ours.append(load(folder / str(number)))
    return theirs, ours


def by_hand(logits: list[torch.Tensor], labels: torch.Tensor, s: AlirectorSettings) -> torch.Tensor:
    """Section 4 of the specification on the rows that predict a label, [N,V] of each model."""
    student, first, second = logits

    def apart(teacher: torch.Tensor) -> torch.Tensor:
        t, own = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
        forward, reverse = (t.exp() * (t - own)).sum(-1).mean(), (own.exp() * (own - t)).sum(-1).mean()
        return {"forward": forward, "reverse": reverse, "both": (forward + reverse) / 2}[s.kind]

    if s.average == "logits":
        kl = apart(s.alpha * first + (1 - s.alpha) * second)
    else:
        kl = s.alpha * apart(first) + (1 - s.alpha) * apart(second)
    return torch.nn.functional.cross_entropy(student, labels) + s.beta * kl


def batch_of(data: Data) -> TokenBatch:
    return collate(data.examples, buckets_for(data.extents), shapes=data.shapes)


def read(objective: Objective, config: ModelConfig, params: Any, batch: TokenBatch, given: Given) -> Any:
    """Loss with its metrics, and scores."""
    scores = scores_of(objective, params, config, batch, Compute(), given)
    loss, metrics = objective.loss(scores, Progress(jnp.int32(0), 1))
    return divide(loss), (metrics, scores)


# As programs: one by one their operations take longer to compile.
READ = jax.jit(read, static_argnums=(0, 1), compiler_options=FAST)
LEARN = jax.jit(jax.value_and_grad(read, argnums=2, has_aux=True), static_argnums=(0, 1), compiler_options=FAST)


def compare(models: list[Any], theirs: Any, data: Data, s: AlirectorSettings, loss: torch.Tensor, tmp_path) -> None:
    """Loss and gradients here beside those in PyTorch."""
    given = Given({name: model.params for name, model in zip(TEACHERS, models[1:], strict=True)})
    (value, _), gradient = LEARN(alirector(s), models[0].config, models[0].params, batch_of(data), given)
    assert float(value) == pytest.approx(float(loss.detach()), rel=2e-5)
    theirs.zero_grad()
    loss.backward()
    gradients = copy.deepcopy(theirs)
    with torch.no_grad():
        for parameter, own in zip(gradients.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(own) if own.grad is None else own.grad)
    gradients.save_pretrained(tmp_path / "gradient")
    wanted = load(tmp_path / "gradient").params
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest), gradient, wanted)


def translated() -> list[list[list[int]]]:
    """Sources, what both alignment models read, and corrections."""
    rng = np.random.default_rng(0)
    sizes = [(5, 8, 8, 4), (3, 9, 10, 6), (7, 12, 11, 3)]
    return [[rng.integers(4, 30, n).tolist() for n in one] for one in sizes]


@pytest.mark.parametrize("s", SETTINGS)
def test_an_encoder_decoder_learns_as_in_pytorch(s, bart, tmp_path):
    theirs, ours = bart
    texts = translated()
    examples = [
        Example(((*source, 3, *labels),), (len(source) + 1,), i,
                beside={name: np.asarray(t) for name, t in zip(TEACHERS, both, strict=True)})
        for i, (source, *both, labels) in enumerate(texts)
    ]  # fmt: skip
    rows: list[list[torch.Tensor]] = [[], [], []]
    for one in texts:
        labels = torch.tensor([one[3]])
        for number, model in enumerate(theirs):
            with torch.set_grad_enabled(number == 0):
                rows[number].append(model(input_ids=torch.tensor([one[number]]), labels=labels).logits[0])
    labels = torch.tensor([i for one in texts for i in one[3]])
    loss = by_hand([torch.cat(one) for one in rows], labels, s)
    compare(ours, theirs[0], Data(examples), s, loss, tmp_path)


def prompted(cuts: bool = False) -> tuple[list[list[list[int]]], list[Example]]:
    """Prompts of the three models with their corrections, cut to 14 tokens where asked for."""
    rng = np.random.default_rng(1)
    sizes = [(5, 8, 9, 4), (3, 9, 7, 6), (6, 12 if cuts else 8, 8, 3)]
    texts = [[rng.integers(4, 30, n).tolist() for n in one] for one in sizes]
    most = 14 if cuts else 99
    examples = []
    for i, (source, *both, labels) in enumerate(texts):
        beside = {name: np.asarray((prompt + labels)[:most]) for name, prompt in zip(TEACHERS, both, strict=True)}
        beside |= {f"{name}_start": np.asarray([len(prompt)]) for name, prompt in zip(TEACHERS, both, strict=True)}
        examples.append(Example((tuple((source + labels)[:most]),), (len(source),), i, beside=beside))
    return texts, examples


@pytest.mark.parametrize("s", SETTINGS[:4])
def test_a_decoder_learns_as_in_pytorch_though_prompts_differ(s, llama, tmp_path):
    theirs, ours = llama
    texts, examples = prompted()
    rows: list[list[torch.Tensor]] = [[], [], []]
    for one in texts:
        for number, model in enumerate(theirs):
            with torch.set_grad_enabled(number == 0):
                whole = torch.tensor([one[number] + one[3]])
                rows[number].append(model(whole).logits[0, len(one[number]) - 1 : -1])
    labels = torch.tensor([i for one in texts for i in one[3]])
    loss = by_hand([torch.cat(one) for one in rows], labels, s)
    compare(ours, theirs[0], Data(examples), s, loss, tmp_path)


def test_an_item_that_one_model_cuts_elsewhere_is_not_taught(llama):
    _, ours = llama
    batch = batch_of(Data(prompted(cuts=True)[1]))
    given = Given({name: model.params for name, model in zip(TEACHERS, ours[1:], strict=True)})
    found = READ(alirector(AlirectorSettings()), ours[0].config, ours[0].params, batch, given)
    loss, (metrics, scores) = jax.tree.map(np.asarray, found)
    assert scores.found.taught[:, 0].sum(-1).tolist() == [4, 0, 0]  # of 14 tokens the second is cut by 1, the third by 1
    assert scores.lengths[:, 0].tolist() == [4, 6, 3]
    assert float(divide(metrics["tokens"])) == 13 and float(metrics["loss/alignment"].weight) == 4
    taught = scores.found.divergence[0, 0].sum() / 13
    assert float(loss) == pytest.approx(float(divide(metrics["loss/language"]) + 0.5 * taught), rel=1e-6)


def test_a_corrector_that_is_its_own_alignment_model_learns_nothing_from_it(bart):
    _, ours = bart
    data = Data([
        Example(((*source, 3, *labels),), (len(source) + 1,), i, beside=dict.fromkeys(TEACHERS, np.asarray(source)))
        for i, (source, *_, labels) in enumerate(translated())
    ])  # fmt: skip
    one, batch, given = ours[0], batch_of(data), Given(dict.fromkeys(TEACHERS, ours[0].params))
    (value, _), gradient = LEARN(alirector(AlirectorSettings(beta=3.0)), one.config, one.params, batch, given)
    (alone, _), wanted = LEARN(corrector(), one.config, one.params, batch, Given())
    assert float(value) == pytest.approx(float(alone), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, wanted)
