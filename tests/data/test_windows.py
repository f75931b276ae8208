"""Windows: nothing lost, no tokenizer over its limit, texts that fit left alone."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_jax.data.windows import split_windows
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import MODELS
from fusion_jax.zoo.specs import SPECS
from fusion_jax.zoo.tasks import corpus

TOKENIZERS = [load_tokenizer(MODELS / s.name) for s in SPECS]


def test_no_tokenizer_exceeds_the_limit_and_nothing_is_lost():
    rng = np.random.default_rng(0)
    words = [t for text in corpus(0, 10) for t in text.split(" ")] + ["naïve", "東京", "🙂", "  ", "\n"]
    texts = [" ".join(rng.choice(words, n)) for n in (3, 40, 200, 0, 700)]
    windows, blank = split_windows(texts, TOKENIZERS, 50)
    assert blank == 1 and len(windows) > 20
    for i, text in enumerate(texts):
        mine = [w for w in windows if w.text_index == i]
        assert "".join(w.text for w in mine) == text and all(texts[i][w.start : w.end] == w.text for w in mine)
    for tokenizer in TOKENIZERS:
        sizes = [len(ids) for ids in tokenizer([w.text for w in windows], add_special_tokens=False)["input_ids"]]
        assert max(sizes) <= 50
    assert [w for w in windows if w.text_index == 0] == [(0, 0, len(texts[0]), texts[0])]


def test_the_tokenizer_that_needs_most_says_where():
    text = "Reverse a b c d e f g h " * 6
    windows, _ = split_windows([text], TOKENIZERS, 40)
    longest = max(TOKENIZERS, key=lambda t: len(t(text, add_special_tokens=False)["input_ids"]))
    offsets = longest(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert windows[0].end == offsets[40][0]


def test_impossible_limits_are_refused():
    with pytest.raises(InputError, match="0 leaves no token"):
        split_windows(["a"], TOKENIZERS, 0)
    with pytest.raises(InputError, match="record 2, field 'text': one character needs more than 1 tokens"):
        split_windows(["a", "🙂🙂"], TOKENIZERS[:1], 1)
