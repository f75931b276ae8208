"""Batches that a method decides: groups stay together, stages follow each other, any step without those before it."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_jax.data.order import Stages, batch_order, grouped_order
from fusion_jax.errors import InputError

PAIRS = np.asarray([(i, 100 + 2 * i) for i in range(13)])
LENGTHS = [5 + i % 7 for i in range(130)]


def test_groups_stay_together_and_every_epoch_has_each_once():
    order = grouped_order(PAIRS, LENGTHS, batch_size=8, seed=3, steps=6)
    assert len(order) == 6
    for epoch in (0, 1):
        batches = [order[step] for step in range(3 * epoch, 3 * epoch + 3)]
        groups = np.concatenate(batches).reshape(-1, 2).tolist()
        assert all(len(batch) == 8 for batch in batches) and len({tuple(g) for g in groups}) == 12
        assert {tuple(g) for g in groups} <= set(map(tuple, PAIRS.tolist()))
    single = grouped_order(np.arange(40)[:, None], LENGTHS, batch_size=8, seed=3, steps=5)
    plain = batch_order(LENGTHS[:40], batch_size=8, seed=3, epochs=1)
    assert [single[i].tolist() for i in range(5)] == [np.asarray(plain[i]).tolist() for i in range(5)]
    with pytest.raises(InputError, match="'batch_size': 9 is no multiple of the 2 examples that go together"):
        grouped_order(PAIRS, LENGTHS, batch_size=9, seed=3, steps=1)
    with pytest.raises(InputError, match="2 examples do not fill one batch of 4"):
        grouped_order(PAIRS[:2], LENGTHS, batch_size=8, seed=3, steps=1)


def test_stages_follow_each_other():
    first = grouped_order(np.arange(24)[:, None], LENGTHS, batch_size=8, seed=1, steps=3)
    second = grouped_order(PAIRS, LENGTHS, batch_size=8, seed=2, steps=3)
    both = Stages([first, second])
    assert len(both) == 6 == len(Stages([[], both, []]))
    assert [both[i].tolist() for i in (5, 0, 3)] == [second[2].tolist(), first[0].tolist(), second[0].tolist()]
    assert Stages([[], both])[4].tolist() == second[1].tolist()
    with pytest.raises(IndexError):
        both[6]
