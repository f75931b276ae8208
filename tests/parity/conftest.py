"""Daily work waits for one configuration of each family; the whole suite tries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

DAILY = {
    "test_logits_files_and_cache": {"llama-gqa-tied", "mistral-window", "qwen2-windows", "gemma2"},
    "test_greedy_equals_transformers_and_the_uncached_model": {"llama-3.1", "gemma2"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != Path(__file__).parent or not isinstance(item, pytest.Function):
            continue
        if item.originalname in DAILY and item.callspec.id not in DAILY[item.originalname]:
            item.add_marker(pytest.mark.slow)
