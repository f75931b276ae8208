"""Training of a reward model: loss and gradient are PyTorch's on the same conversations, and scores are those of use."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fusion_jax import losses
from fusion_jax.data.batches import buckets_of, collate
from fusion_jax.data.chat import render_text
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.losses import Pair, divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import load, save
from fusion_jax.rewards.reward_data import ALIKE, TOO_LONG, reward_examples
from fusion_jax.rewards.reward_model import as_reward_model, score_responses
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import RewardSettings
from fusion_jax.train.scores import reward
from tests.small import small_model

ASKED = ({"role": "user", "content": "What is 1 + 2?"},)
ROWS = [
    Row("a", ASKED, ("3", "The answer is 4.")),
    Row("b", (*ASKED, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}), ("No, 3", "Yes")),
    Row("c", ({"role": "user", "content": "Reverse a b c"},), ("c b a", "c a b")),
]


@pytest.fixture(scope="module")
def model():
    return as_reward_model(small_model(initializer_range=0.3), 7)


def batch_of(model, rows, most=128):
    examples, counts = reward_examples(rows, model.tokenizer, most)
    assert not counts
    return jax.tree.map(jnp.asarray, collate(examples, buckets_of(examples)))


def theirs(folder, tokenizer, rows):
    """PyTorch's rewards [B,2], loss and gradients by name: the usual reward trainer's, with its centering term."""
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    found = []
    for row in rows:
        for said in row.responses:
            text = render_text(tokenizer, [*row.messages, {"role": "assistant", "content": said}], header=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found.append(judge(torch.tensor([ids])).logits[0, 0])
    values = torch.stack(found).reshape(-1, 2)
    loss = -torch.nn.functional.logsigmoid(values[:, 0] - values[:, 1]).mean() + 0.01 * values.sum(1).pow(2).mean()
    loss.backward()
    return values.detach().numpy(), loss.item(), {name: p.grad.numpy() for name, p in judge.named_parameters()}


@pytest.mark.parametrize("shared", [True, False], ids=["prompt once", "prompt each"])
def test_loss_and_gradient_are_those_of_pytorch(model, shared, tmp_path):
    save(model, tmp_path / "judge", dtype="float32")
    values, loss, gradients = theirs(tmp_path / "judge", model.tokenizer, ROWS)
    objective, batch = objectives.rewards(RewardSettings(center=0.01)), batch_of(model, ROWS)

    def ours(params):
        scores = objective.scores(params, model.config, batch, Compute(shared_prompt=shared))
        mean, metrics = objective.loss(scores, Progress(jnp.asarray(0), 1))
        return divide(mean), (scores.sequence, metrics)

    (found, (scores, metrics)), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(model.params)
    np.testing.assert_allclose(scores, values, atol=2e-5)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert float(divide(metrics["rewards/accuracies"])) == pytest.approx((values[:, 0] > values[:, 1]).mean())
    for name, got in (
        ("score.weight", grads["score"]["kernel"]),
        ("model.embed_tokens.weight", grads["embed"]["embedding"]),
        ("model.layers.1.self_attn.q_proj.weight", grads["layers"]["q"]["kernel"][1].T),
        ("model.layers.0.mlp.down_proj.weight", grads["layers"]["down"]["kernel"][0].T),
    ):
        np.testing.assert_allclose(got, gradients[name], atol=2e-5 * np.abs(gradients[name]).max() + 1e-7, err_msg=name)


def test_what_is_trained_is_what_scores(model):
    rows = [row for row in ROWS if len(row.messages) == 1]
    trained = reward(model.params, model.config, batch_of(model, rows), Compute()).sequence
    records = [
        {"prompt": row.messages[0]["content"], "response": said} for row in rows for said in row.responses
    ]  # fmt: skip
    used = [record["reward"] for record in score_responses(model, records)]
    np.testing.assert_allclose(np.ravel(trained), used, atol=1e-5)


def test_transformers_scores_a_padded_batch_alike(model, tmp_path):
    tokenizer = model.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    padded = as_reward_model(small_model(initializer_range=0.3), 7)
    save(padded, tmp_path / "judge", dtype="float32")
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", dtype=torch.float32)
    texts = [
        render_text(tokenizer, [*row.messages, {"role": "assistant", "content": row.responses[0]}], header=False)
        for row in ROWS
    ]
    batch = padded.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        together = judge(**batch).logits[:, 0].numpy()
    records = [{"prompt": row.messages[0]["content"], "response": row.responses[0]} for row in ROWS]
    ours = [record["reward"] for record in score_responses(padded, records)]
    np.testing.assert_allclose(together[[0, 2]], np.asarray(ours)[[0, 2]], atol=1e-4)  # the middle one has more turns


def test_a_head_is_fresh_seeded_and_saved(model, tmp_path):
    plain = small_model(initializer_range=0.3)
    again, other = as_reward_model(plain, 7), as_reward_model(plain, 8)
    assert as_reward_model(model, 1) is model and "head" not in model.params
    np.testing.assert_array_equal(again.params["score"]["kernel"], model.params["score"]["kernel"])
    assert np.abs(other.params["score"]["kernel"] - model.params["score"]["kernel"]).max() > 0.1
    save(model, tmp_path / "judge", dtype="float32")
    back = load(tmp_path / "judge")
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
    several = dataclasses.replace(model, config=small_model(num_labels=3).config)
    with pytest.raises(InputError, match="3 scores, a reward model has one"):
        as_reward_model(several, 0)


def test_pairs_that_cannot_be_read_are_counted(model):
    many = Row("long", ASKED, ("3 " * 200, "4"))
    longer = Row("longer", ASKED, ("3" * 100_000, "4"))
    same = Row("same", ASKED, ("3", "3"))
    examples, counts = reward_examples([many, ROWS[0], longer, same], model.tokenizer, 64)
    assert [example.index for example in examples] == [1] and counts == {TOO_LONG: 2, ALIKE: 1}
    assert examples[0].scored == (1, 1)


def test_an_array_of_both_sides_is_refused():
    with pytest.raises(InputError, match="rewards"):
        losses.bradley_terry(jnp.zeros((2, 2)))
    assert float(losses.bradley_terry(Pair(jnp.asarray([900.0]), jnp.asarray([-900.0])))[0][0]) == 0.0
