"""Arms of ProFuser: as many steps of as many rows, whatever their modes have; instructions read with their answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fusion_jax.data.batches import Example
from fusion_jax.errors import InputError
from fusion_jax.runs.advantages import StageSettings
from fusion_jax.runs.branches import Branch, Curriculum, staged
from fusion_jax.runs.instructions import read_instructions
from fusion_jax.train.objectives import INFERENCE, TRAINING
from fusion_jax.train.settings import TrainSettings
from tests.small import write

NAMES = [f"prompt {number}" for number in range(200)]


def branch(numbers: list[int]) -> Branch:
    return Branch(numbers, [Example((tuple(range(3 + n % 5)),), (1,)) for n in numbers], "")


@pytest.mark.parametrize(("own", "right", "first", "both"), [
    (range(40), range(64), 1.0, 2.0), (range(100, 188), range(188), 1.0, 2.0), (range(44), range(44), 0.5, 2.0),
    (range(64), range(16), 1.0, 1.0), (range(30), range(40), 0.0, 1.5),
])  # fmt: skip
def test_all_arms_have_as_many_steps(own, right, first, both):
    branches = {"infer": branch(list(own)), "train": branch(list(right))}
    loss, train = StageSettings(first_epochs=first, both_epochs=both), TrainSettings(batch_size=8)
    arms = {
        "profuser": Curriculum(loss), "simul": Curriculum(replace(loss, order="simul")), "reverse": Curriculum(replace(loss, order="reverse")),
        "infer": Curriculum(loss, "infer"), "train": Curriculum(loss, "train"),
    }  # fmt: skip
    found = {name: staged(branches, arm, train, NAMES) for name, arm in arms.items()}
    assert len({len(data.batches) for data, _ in found.values()}) == 1
    for name, (data, first_steps) in found.items():
        kinds = [[data.examples[i].branch for i in batch] for batch in data.batches]
        assert all(len(kind) == 8 for kind in kinds)
        alone = {"profuser": INFERENCE, "infer": INFERENCE, "reverse": TRAINING, "train": TRAINING}.get(name)
        for step, kind in enumerate(kinds):
            if step < first_steps and alone is not None:
                assert set(kind) == {alone}
            else:
                assert kind == [INFERENCE, TRAINING] * 4
                owners = [data.name(int(i)).split(",")[0] for i in data.batches[step]]
                assert owners[::2] == owners[1::2]
        assert first_steps == len(kinds) or name in ("profuser", "reverse")


def test_too_few_rows_are_refused():
    few, train = {"infer": branch([0, 1]), "train": branch(list(range(64)))}, TrainSettings(batch_size=8)
    with pytest.raises(InputError, match="2 examples do not fill one batch of 8"):
        staged(few, Curriculum(StageSettings()), train, NAMES)
    apart = {"infer": branch(list(range(64))), "train": branch([100, 101])}
    with pytest.raises(InputError, match="0 examples are left"):
        staged(apart, Curriculum(StageSettings(order="simul")), train, NAMES)


def test_instructions_have_the_answers_of_their_own_records(tmp_path):
    said = {"messages": [{"role": "user", "content": "again"}, {"role": "assistant", "content": "it is 4"}]}
    records = [
        {"prompt": "again", "response": "it is 2", "answer": "2"}, {"prompt": "again", "response": "it is 3", "answer": "3"},
        said | {"answer": "4"}, {"prompt": "other", "response": "5"},
    ]  # fmt: skip
    file, counts = str(write(tmp_path / "a.jsonl", records)), Counter()
    found = read_instructions(file, counts, on_bad="skip", answers=True)
    assert [(one["response"], one["answer"]) for one in found] == [("it is 2", "2"), ("it is 3", "3"), ("it is 4", "4")]
    assert counts['has no "answer" for --verifiers'] == 1
    with pytest.raises(InputError, match="record 4, field 'answer'"):
        read_instructions(file, Counter(), on_bad="error", answers=True)
    assert len(read_instructions(file, Counter(), on_bad="error", answers=False)) == 4


def test_rows_that_fell_back_are_dropped_and_empty_ones_are_the_pivot_s():
    """Where nothing is to be compared, the target's own distribution does not stand in."""
    from fusion_jax.align.rules import RowRule
    from fusion_jax.teachers.rows import FusionRow, Opinion
    from fusion_jax.teachers.settings import FusionSettings
    from fusion_jax.teachers.targets import fuse

    ids, probs = np.asarray([[5, 6], [5, 6], [5, 6]]), np.log(np.asarray([[0.75, 0.25]] * 3, np.float32))
    own = Opinion(ids, probs, np.full(3, 2), np.zeros(3, np.uint8), 1.0)
    rule = np.asarray([RowRule.ONE_TO_ONE, RowRule.FALLBACK, RowRule.EMPTY], np.uint8)
    source = Opinion(ids + 2, probs, np.asarray([2, 0, 0]), rule, 1.0)
    row = FusionRow(np.arange(4)[:3], np.asarray([False, True, True]), (own, source), np.ones(3, np.int32))
    (example,) = fuse([row], FusionSettings(pivot=False), mask="all")
    targets = example.targets
    assert targets.ids[0].tolist() == [7, 8] and targets.probs[0] == pytest.approx([0.75, 0.25])
    assert not targets.probs[1].any()
    assert targets.ids[2].tolist() == [5, 6] and targets.probs[2] == pytest.approx([0.75, 0.25])
