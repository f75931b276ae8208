"""Models of different vocabularies through a whole merge: the output loads, and its rows are the tokens' rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import fusion_jax as fj
from fusion_jax import InputError
from fusion_jax.models.parameters import init_params
from fusion_jax.zoo.tasks import corpus
from fusion_jax.zoo.tokenizers import train_tokenizer
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two models of one shape but for their tokenizers of 340 and 300 tokens."""
    place = tmp_path_factory.mktemp("vocabularies")
    one = small_model()
    tokenizer = train_tokenizer("byte_bpe", "headers", 300, corpus(5, 20))
    config = replace(one.config, vocab_size=len(tokenizer))
    other = replace(one, config=config, tokenizer=tokenizer, params=init_params(config, jax.random.key(1)))
    fj.save(one, place / "one")
    fj.save(other, place / "other")
    return place / "one", place / "other"


def recipe(folders: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in folders]
    return {"merge_method": "linear", "models": models, **changes}


def test_sizes_that_differ_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="tokenizer_source"):
        fj.merge.merge(recipe(folders), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.unfinished").exists()


@pytest.mark.parametrize(
    ("source", "pad"),
    [("union", None), *(pytest.param(s, n, marks=pytest.mark.slow) for s, n in (("union", 64), ("other", None)))],
)
def test_rows_are_those_of_the_tokens(folders, tmp_path, source, pad):
    tokenizer = {"source": str(folders[1]) if source == "other" else source}
    if pad:
        tokenizer["pad_to_multiple_of"] = pad
    fj.merge.merge(recipe(folders, tokenizer=tokenizer), tmp_path / "out")
    merged, one, other = (fj.load(f) for f in (tmp_path / "out", *folders))
    vocabularies = [m.tokenizer.get_vocab() for m in (one, other)]
    expected = set(vocabularies[1]) | (set(vocabularies[0]) if source == "union" else set())
    assert set(merged.tokenizer.get_vocab()) == expected
    table = np.asarray(merged.params["embed"]["embedding"])
    rows = [np.asarray(m.params["embed"]["embedding"]) for m in (one, other)]
    assert len(table) == (-(-len(expected) // pad) * pad if pad else len(expected)) == merged.config.vocab_size
    only_one = 0
    for token, number in merged.tokenizer.get_vocab().items():
        owners = [r[v[token]] for r, v in zip(rows, vocabularies, strict=True) if token in v]
        only_one += len(owners) == 1
        np.testing.assert_allclose(table[number], np.mean(owners, 0), rtol=0, atol=1e-6, err_msg=token)
    assert only_one > (0 if source == "other" else 5)
    assert fj.generate(merged, ["Say a"], max_new_tokens=2)
