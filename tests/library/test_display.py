"""What a record shows of itself at a prompt, in a log or in an error: a line, whatever it holds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import numpy as np

import fusion_jax as fj
from fusion_jax.align.distributions import AlignedRows
from fusion_jax.data.batches import Example
from fusion_jax.data.documents import text_documents
from fusion_jax.data.tokenise import TokenisedRow
from fusion_jax.display import brief
from fusion_jax.losses import Mean
from fusion_jax.merge import prepare
from fusion_jax.train.state import TrainState
from fusion_jax.zoo import model_path
from tests.small import small_model


@cache
def model():
    return small_model()


def test_a_model_is_one_line_that_says_what_it_is():
    count = sum(x.size for x in jax.tree.leaves(model().params))
    wanted = f"Model(llama, 2 layers, width 32, {count:,} parameters, float32, tokenizer of {len(model().tokenizer)} entries)"
    assert repr(model()) == str(model()) == wanted
    assert "no tokenizer" in repr(replace(model(), tokenizer=None))
    half = jax.tree.map(lambda x: x.astype("bfloat16"), model().params)
    assert "bfloat16/float32" in repr(replace(model(), params=half | {"embed": model().params["embed"]}))


def test_a_loaded_model_names_its_folder():
    folder = model_path("zoo:target")
    assert repr(fj.load(folder)).endswith(f"from '{folder}')") or "..." in repr(fj.load(folder))


def records():
    ids = np.zeros((3000, 8), np.int32)
    view = fj.align.view_of(model().tokenizer)
    large = replace(view, pieces=view.pieces * 1000, decoded=view.decoded * 1000, piece_bytes=None)
    prepared = prepare({"merge_method": "linear", "models": [{"model": "zoo:target", "parameters": {"weight": 1.0}}]})
    yield from (large, fj.align.exact_map(view, view), AlignedRows(*[ids] * len(AlignedRows._fields)))
    yield from (text_documents(["x" * 10**6])[0], TokenisedRow(([1] * 10**5,), ([2] * 10**5,), False))
    yield from (Example((tuple(range(10**5)),), (0,)), TrainState(*[model().params] * len(TrainState._fields)))
    yield from (prepared, prepared.plan, next(iter(prepared.inputs.values())))


def test_records_of_arrays_and_texts_are_shown_short():
    for record in records():
        assert len(repr(record)) < 600 and "\n" not in repr(record), type(record)
        assert repr(record).startswith(f"{type(record).__name__}(")


def test_few_numbers_are_shown_themselves():
    assert brief(Mean(np.zeros((30, 2), np.float32), np.ones(2))) == "Mean(total=float32[30,2], weight=[1.0, 1.0])"
