"""Correctors that copy from their source: where the last layer looks, the loss, and what is written, beside PyTorch."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fusion_jax.data.batches import Data, Example, buckets_for, collate
from fusion_jax.losses.reductions import divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.decoder import encode, looking
from fusion_jax.models.folder import load, save
from fusion_jax.sampling.copying import write_copying
from fusion_jax.train.alirector import copying
from fusion_jax.train.objective import Progress
from tests.train.test_alirector import BART

rng = np.random.default_rng(3)
GATE = {"kernel": jnp.asarray(rng.normal(0, 0.7, 32), jnp.float32), "bias": jnp.asarray([0.2], jnp.float32)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """BART in PyTorch, and here with a gate, saved and loaded again."""
    folder = tmp_path_factory.mktemp("copying")
    torch.manual_seed(0)
    theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(folder / "bart")
    ours = load(folder / "bart")
    config = replace(ours.config, head=replace(ours.config.head, copying=True))
    save(replace(ours, config=config, params=ours.params | {"copy": GATE}), folder / "copies")
    return theirs, load(folder / "copies")


def dense(theirs, source: list[int], tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T,V] by section 5.2 as it stands, and the last layer's mean attention [T,S]."""
    out = theirs(
        input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([tokens]), output_attentions=True,
        output_hidden_states=True,
    )  # fmt: skip
    attention = out.cross_attentions[-1][0].mean(0)
    states, read = out.decoder_hidden_states[-1][0], out.encoder_last_hidden_state[0]
    weight, bias = torch.tensor(np.array(GATE["kernel"])), float(GATE["bias"][0])
    gate = torch.sigmoid(torch.cat([attention @ read, states], -1) @ weight + bias)[:, None]
    copied = torch.zeros(len(tokens), out.logits.shape[-1])
    for place, token in enumerate(source):
        copied[:, token] += attention[:, place]
    return gate * out.logits[0] + (1 - gate) * copied, attention


@pytest.fixture(autouse=True)
def eager(models):
    models[0].set_attn_implementation("eager")


def test_a_saved_model_keeps_its_gate(models):
    _, ours = models
    assert ours.config.head.copying
    np.testing.assert_array_equal(ours.params["copy"]["kernel"], GATE["kernel"])


def test_where_the_last_layer_looks(models):
    theirs, ours = models
    sources, tokens = [[5, 6, 5, 9, 11], [7, 8, 9]], [[3, 4, 6, 9], [3, 12, 13, 14]]
    read = jnp.asarray([sources[0], [*sources[1], 0, 0]])
    encoded = encode(ours.params, ours.config, read, jnp.asarray([5, 3]))
    _, found = looking(ours.params, ours.config, jnp.asarray(tokens), encoded)
    for row, (source, some) in enumerate(zip(sources, tokens, strict=True)):
        with torch.no_grad():
            wanted = dense(theirs, source, some)[1]
        np.testing.assert_allclose(found[row, :, : len(source)], wanted, atol=2e-6)
    assert np.abs(found[1, :, 3:]).max() == 0


def test_the_loss_is_that_of_dense_logits(models):
    theirs, ours = models
    texts = [([5, 6, 5, 9, 11], [4, 6, 9, 5]), ([7, 8, 9], [8, 8, 20])]
    examples = [Example(((*s, 3, *y),), (len(s) + 1,), i) for i, (s, y) in enumerate(texts)]
    batch = jax.tree.map(jnp.asarray, collate(examples, buckets_for(Data(examples).extents)))
    objective = copying()
    scores = objective.scores(ours.params, ours.config, batch, Compute())
    with torch.no_grad():
        logits = torch.cat([dense(theirs, s, [3, *y[:-1]])[0] for s, y in texts])
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([t for _, y in texts for t in y]))
    assert float(divide(objective.loss(scores, Progress(jnp.int32(0), 1))[0])) == pytest.approx(float(wanted), rel=2e-5)


def test_what_is_written_is_the_best_token_of_dense_logits(models):
    theirs, ours = models
    sources = [[5, 6, 5, 9, 11], [7, 8, 9], [20, 21, 22, 23]]
    found = write_copying(ours.params, ours.config, sources, max_new_tokens=7, stop=9, batch_size=2)
    for source, one in zip(sources, found, strict=True):
        tokens, total = [3], 0.0
        with torch.no_grad():
            for _ in range(7):
                logprobs = torch.log_softmax(dense(theirs, source, tokens)[0][-1], -1)
                tokens.append(int(logprobs.argmax()))
                total += float(logprobs.max())
                if tokens[-1] == 9:
                    break
        assert one.finished == (tokens[-1] == 9)
        assert one.ids == [t for t in tokens[1:] if t != 9]
        assert one.logprob == pytest.approx(total, abs=1e-4)
