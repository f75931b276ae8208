"""What the zoo's models practise before a method fuses what they predict of plain texts."""

from __future__ import annotations

import pytest

from fusion_jax.data.documents import token_counts
from fusion_jax.errors import InputError
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.runs.practice import Practice
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import documents

MODEL = "zoo:qwen-source"


def test_texts_that_are_longer_than_the_setting_are_left_out():
    practice = Practice({MODEL: 64}, TrainSettings(), 14)
    texts = documents(practice.lessons(MODEL), split="train", seed=1, repeat=True)
    kept = practice._short(MODEL, texts)
    assert 0 < len(kept) < len(texts)
    assert max(token_counts(tokenizer_of(model_path(MODEL)), kept)) <= 14
    with pytest.raises(InputError, match="'--max-length': every text that 'qwen-source' practises has more than 3 tokens"):
        Practice({MODEL: 64}, TrainSettings(), 3)._short(MODEL, texts)
