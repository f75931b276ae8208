"""Teachers that are asked while the target trains: the rows and examples of stored ones, computed by the batch.

Nothing is written and nothing is kept, so that every epoch asks anew: a forward pass of each teacher for each text of a
step, instead of a store of `k` entries for each token. What is asked for depends on the texts alone, so that a run that
was cut short goes on as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fusion_jax.data.batches import Data, Example
from fusion_jax.data.documents import TeacherRow, TeacherText
from fusion_jax.errors import InputError
from fusion_jax.lazy import Indexed, Lazy
from fusion_jax.teachers.rows import FusionRows
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.store import StoreIdentity
from fusion_jax.teachers.targets import Mask, check_teachers, example_of, fuse


class LiveTeacher(Indexed[TeacherRow]):
    """A teacher's rows, computed when they are asked for: what `TeacherStore` is for those on a disk.

    The numbers are those that a store holds, float16 log-probs included, but for the last bits in which a forward pass
    depends on what else is in its batch.

    Args:
      identity: as of a store. rows_of: of `reading.teacher_rows`, which has the model.
      at_once: rows that are asked for together where all are gone through.

    Raises:
      InputError: when rows are asked for, one that is not finite.
    """

    def __init__(
        self, identity: StoreIdentity, rows_of: Callable[[Sequence[int]], list[TeacherRow]], *, at_once: int
    ) -> None:
        self.identity, self._rows_of, self._at_once = identity, rows_of, at_once

    def __len__(self) -> int:
        return self.identity.records

    def _at(self, i: int) -> TeacherRow:
        return self.some([i])[0]

    def some(self, wanted: Sequence[int]) -> list[TeacherRow]:
        rows = self._rows_of(wanted) if len(wanted) else []
        for number, row in zip(wanted, rows, strict=True):
            for name in ("topk_logprobs", "logsumexp", "metric"):
                if not np.isfinite(getattr(row, name)).all():
                    cure = "Check the teacher's weights and the text"
                    raise InputError("is not finite", record=number + 1, field=name, cure=cure)
        return rows

    def part(self, identity: StoreIdentity, numbers: Sequence[int]) -> LiveTeacher:
        """The same teacher on some of its texts, known as `identity`."""
        return LiveTeacher(identity, lambda wanted: self.some([numbers[i] for i in wanted]), at_once=self._at_once)

    def __iter__(self) -> Iterator[TeacherRow]:
        for start in range(0, len(self), self._at_once):
            yield from self.some(range(start, min(start + self._at_once, len(self))))


def unread(text: TeacherText) -> TeacherRow:
    """The row of a text that its teacher has not read: tokens alone, which is what alignment looks at."""
    return TeacherRow(text.ids, text.offsets, *[np.zeros(0, np.float32)] * 5)


def live_data(rows: FusionRows, settings: FusionSettings, *, k: int, mask: Mask, reset: bool = False) -> Data:
    """Training examples whose targets the teachers make when a batch is asked for.

    Args: as in `targets.fuse`.
      k: entries of each teacher's rows.

    Raises:
      InputError: settings that do not go together, no teacher.
    """
    teachers = check_teachers(settings, rows.metrics.shape[1])
    width = k * (teachers if settings.function == "avgce" else 1)

    def stand_in(number: int) -> Example:
        """As large as the real one, with something at every token that will be compared."""
        row = rows.bare[number]
        shape = len(row.ids), width
        ids, probs = np.broadcast_to(np.int32(0), shape), np.broadcast_to(np.float32(1), shape)
        return example_of(row, number, ids, probs, 0.0, mask, reset)

    def taught(wanted: Sequence[int]) -> list[Example]:
        chosen = sorted(set(wanted))
        made = fuse(rows.some(chosen), settings, mask=mask, reset=reset)
        found = dict(zip(chosen, made, strict=True))
        return [replace(found[i], index=i) for i in wanted]

    return Data(Lazy(len(rows), stand_in), taught=taught)
