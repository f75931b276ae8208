"""A teacher's rows against `transformers`-style dense softmax of the same logits, through the store and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from fusion_jax.data.documents import encode_documents, leading_token, read_before, text_documents
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import surprise
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import load, logits
from fusion_jax.teachers.reading import store_identity, teacher_rows
from fusion_jax.teachers.store import TeacherStore, write_store
from fusion_jax.zoo import model_path

pytestmark = pytest.mark.usefixtures("quick_compiler")

TEXTS = ["Reverse a b c d e", "What is 12 + 3?\nThe answer is 15.", "a", "Name the second letter of k l a b c"]


@pytest.mark.parametrize("name", ["qwen-source", pytest.param("gemma-source", marks=pytest.mark.slow)])
def test_rows_are_the_dense_distributions(tmp_path, name):
    """Top entries, normaliser, tail and metric of every position, in batches of unequal length."""
    model = load(model_path(f"zoo:{name}"), dtype="float32")
    encoded = encode_documents(model.tokenizer, text_documents(TEXTS), max_length=64)
    identity = store_identity(model, text_documents(TEXTS), 5)
    write_store(tmp_path / "store", identity, teacher_rows(model, encoded, 5, Compute(), batch_size=3))
    size, rows = len(model.tokenizer), list(TeacherStore(tmp_path / "store", identity))
    longest = max(len(row.ids) for row in rows)
    padded = np.stack([np.pad(row.ids, (0, longest - len(row.ids))) for row in rows])
    whole = np.asarray(jax.jit(lambda ids: logits(model, ids))(padded), np.float64)
    for text, row, every in zip(TEXTS, rows, whole, strict=True):
        assert row.ids[-1] == model.tokenizer.eos_token_id
        pieces = [text[a:b] for a, b in row.offsets]
        assert "".join(pieces) == text and pieces[-1] == ""
        dense = every[: len(row.ids), :size]
        logsumexp = np.log(np.exp(dense - dense.max(-1, keepdims=True)).sum(-1)) + dense.max(-1)
        np.testing.assert_allclose(row.logsumexp, logsumexp, rtol=1e-5)
        logprobs = dense - logsumexp[:, None]
        best = -np.sort(-logprobs, -1)[:, :5]
        np.testing.assert_allclose(row.topk_logprobs, best, atol=2e-3, rtol=1e-3)  # float16
        picked = np.take_along_axis(logprobs, row.topk_ids, -1)
        np.testing.assert_allclose(picked, best, atol=1e-4)
        np.testing.assert_allclose(row.tail, 1 - np.exp(best).sum(-1), atol=1e-5)
        nll = -np.take_along_axis(logprobs[:-1], row.ids[1:, None], -1).sum()
        np.testing.assert_allclose(row.metric, [nll, len(row.ids) - 1], rtol=1e-4)


def test_rows_do_not_depend_on_their_batch():
    model = load(model_path("zoo:target"), dtype="float32")
    encoded = encode_documents(model.tokenizer, text_documents(TEXTS), max_length=64)
    whole = teacher_rows(model, encoded, 4, Compute(), batch_size=4)(range(4))
    alone = teacher_rows(model, encoded, 4, Compute(), batch_size=1)(range(2, 3))[0]
    np.testing.assert_array_equal(whole[2].topk_ids, alone.topk_ids)
    np.testing.assert_allclose(whole[2].logsumexp, alone.logsumexp, rtol=1e-6)


def test_texts_that_cannot_be_scored(tmp_path):
    model = load(model_path("zoo:target"))
    with pytest.raises(InputError, match="record 2, field 'text': the text has no token"):
        encode_documents(model.tokenizer, text_documents(["a", ""]), max_length=64)
    with pytest.raises(InputError, match=r"record 1, field 'text': the text has \d+ tokens, the limit is 4"):
        encode_documents(model.tokenizer, text_documents(["Reverse a b c d e"]), max_length=4)
    broken = {**model.params, "final_norm": {"scale": jnp.full_like(model.params["final_norm"]["scale"], jnp.nan)}}
    encoded = encode_documents(model.tokenizer, text_documents(TEXTS), max_length=64)
    rows = teacher_rows(model.__class__(model.config, broken, model.tokenizer), encoded, 4, Compute(), batch_size=4)
    with pytest.raises(InputError, match=r"record 1, field '\w+': is not finite"):
        write_store(tmp_path / "nan", store_identity(model, text_documents(TEXTS), 4), rows)


def test_texts_are_read_behind_bos_where_the_tokenizer_puts_it():
    """Its row is left out, so that rows are those of the text's tokens; chats, whose templates write it, are as ever."""
    model = load(model_path("zoo:qwen-source"), dtype="float32")
    plain = encode_documents(model.tokenizer, text_documents(TEXTS), max_length=64)
    assert leading_token(model.tokenizer, text_documents(TEXTS)) is None
    backend, bos = model.tokenizer.backend_tokenizer, model.tokenizer.bos_token_id
    backend.post_processor = TemplateProcessing(
        single=f"{model.tokenizer.bos_token} $A", special_tokens=[(model.tokenizer.bos_token, bos)]
    )
    assert leading_token(model.tokenizer, text_documents(TEXTS)) == bos
    assert leading_token(model.tokenizer, [d._replace(eos=False) for d in text_documents(TEXTS)]) is None
    encoded = encode_documents(model.tokenizer, text_documents(TEXTS), max_length=64)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(plain, encoded, strict=True))
    rows = teacher_rows(model, encoded, 5, Compute(), batch_size=3, bos=bos)(range(4))
    for text, row in zip(encoded, rows, strict=True):
        dense = np.asarray(logits(model, np.asarray([[bos, *text.ids]]))[0, 1:], np.float64)
        logprobs = dense - np.log(np.exp(dense).sum(-1, keepdims=True))
        assert row.topk_ids.shape == (len(text.ids), 5)
        np.testing.assert_array_equal(row.topk_ids[:, 0], logprobs[:, : len(model.tokenizer)].argmax(-1))
        nll = -np.take_along_axis(logprobs[:-1], row.ids[1:, None], -1).sum()
        np.testing.assert_allclose(row.metric, [nll, len(row.ids) - 1], rtol=1e-4)
    total = sum(row.metric[0] for row in rows)
    read = surprise(model, text_documents(TEXTS), max_length=64, compute=Compute())
    assert read.nats_per_token == pytest.approx(total / sum(row.metric[1] for row in rows), rel=1e-4)
    long = plain[1]._replace(ids=plain[1].ids[:6])
    assert [read_before(long, bos, size) for size in (6, 7)] == [[], [bos]]
