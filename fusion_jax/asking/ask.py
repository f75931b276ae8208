"""Asking everything once: what the log holds is taken from it, questions that are alike are asked together, and of
several processes none asks what another one asks."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from fusion_jax.asking.contract import Answerer, Decoding, Failure, Outcome, Question, Reply
from fusion_jax.asking.log import Entry, ReplyLog, key_of
from fusion_jax.errors import InputError
from fusion_jax.hosts.agree import agreed, first_host, on_first, seen, wait_for
from fusion_jax.hosts.join import Host, HostSettings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Kept:
    """Where replies are kept, and who else asks.

    log: what was answered before, and where replies are kept as they come. Failures are kept when all is asked, so that
    a run that was stopped asks those again. share: this process among those that share the log and are not connected.
    patience: seconds without a new line after which the others count as lost. failed_again: whether questions that the
    log holds as failed are asked again.
    """

    log: ReplyLog | None = None
    share: Host = Host()
    patience: float = 1800.0
    failed_again: bool = False

    def owner(self, key: str) -> int:
        """Which of the processes that share the log asks for a reply."""
        return int(key[:12], 16) % self.share.count

    def again(self, entries: Mapping[str, Entry]) -> int:
        """How often what failed is asked again by now, by the failures of this process or, if it has none, of all."""
        failed = {key: one.again for key, one in entries.items() if isinstance(one.outcome, Failure)}
        own = [again for key, again in failed.items() if self.owner(key) == self.share.index]
        return 1 + max(own or failed.values(), default=0) if self.failed_again else 0

    def entries(self) -> dict[str, Entry]:
        """What the log holds now."""
        return {} if self.log is None else dict(self.log.entries())


def ask(
    answerer: Answerer,
    questions: Sequence[Question],
    decoding: Decoding,
    kept: Kept = Kept(),
    *,
    sample: int = 0,
    progress: Progress = lambda done, of: None,
) -> list[Outcome]:
    """The outcome of every question, in order; each different one is asked once for a sample number.

    Hosts that share a mesh call it in step: a model's hosts compute together, and of a server the first host asks. Of
    processes that are not connected each asks its share, then waits for the log to hold the others'.

    Args:
      sample: another number is another reply to the same question.
      progress: told how many different questions have an outcome, of how many.

    Raises:
      InputError: as the answerer and the log; hosts or processes that share nothing but have to.
    """
    every = [key_of(answerer.identity, one, decoding, sample) for one in questions]
    first = dict(zip(every, questions, strict=True))
    if kept.log is None and (kept.share.count > 1 or (jax.process_count() > 1 and not answerer.together)):
        raise InputError("several processes ask, which need a log", field="log", cure="Give a ReplyLog")
    before = dict[str, Entry]()
    on_first(lambda: before.update(kept.entries()))
    found = _as_the_first(kept, _known(kept, before), list(first))
    known, mine = len(found), [key for key in first if key not in found and kept.owner(key) == kept.share.index]
    own = dict[str, Outcome]()
    progress(known, len(first))

    def asked() -> None:
        left = {key: first[key] for key in mine}
        asking = _Asking(answerer, left, decoding, kept.log, sample, kept.again(before))
        own.update(asking.outcomes(lambda done: progress(known + done, len(first))))

    if answerer.together:
        asked()
    else:
        on_first(asked)
        own = _as_the_first(kept, own, mine)
    left, others = [key for key in first if key not in found and key not in own], dict[str, Outcome]()
    on_first(lambda: others.update(_of_others(kept, before, left)))
    found |= own | _as_the_first(kept, others, left)
    return [found[key] for key in every]


def failures(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How many questions failed, by reason."""
    return Counter(one.reason for one in outcomes if isinstance(one, Failure))


def details(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """What the first failure of each reason says, where it says something."""
    found = dict[str, str]()
    for one in outcomes:
        if isinstance(one, Failure) and one.detail:
            found.setdefault(one.reason, one.detail)
    return found


def _known(kept: Kept, entries: Mapping[str, Entry]) -> dict[str, Outcome]:
    """What need not be asked."""
    outcomes = {key: entry.outcome for key, entry in entries.items()}
    return {key: one for key, one in outcomes.items() if not (kept.failed_again and isinstance(one, Failure))}


def _as_the_first(kept: Kept, outcomes: Mapping[str, Outcome], keys: Sequence[str]) -> dict[str, Outcome]:
    """Outcomes of these keys as the first host has them, on all hosts that are connected: the others wait until they
    find the same in the log. outcomes: this host's."""
    own = {key: outcomes[key] for key in keys if key in outcomes}
    if jax.process_count() == 1 or kept.log is None or not keys:
        return own
    marks = agreed(np.stack([_mark(own.get(key)) for key in keys]))
    wanted = {key: mark for key, mark in zip(keys, marks, strict=True) if mark.any()}
    held = dict[str, Outcome]()

    def same(_: Path) -> bool:
        with suppress(InputError):  # of this host alone: raised here, the others would wait for it
            held.update({key: entry.outcome for key, entry in kept.entries().items() if key in wanted})
        return all((_mark(held.get(key)) == mark).all() for key, mark in wanted.items())

    seen(kept.log.folder, (lambda _: True) if first_host() else same)
    return own if first_host() else held


def _mark(outcome: Outcome | None) -> np.ndarray:
    """uint32[2] that tells outcomes apart, 0 where there is none."""
    if outcome is None:
        return np.zeros(2, np.uint32)
    parts = (outcome.reason, outcome.detail) if isinstance(outcome, Failure) else (outcome.text, outcome.finish)
    told = repr((type(outcome).__name__, *parts)).encode("utf-8", "backslashreplace")
    return np.maximum(np.frombuffer(hashlib.sha256(told).digest()[:8], np.uint32), 1)


@dataclass(frozen=True)
class _Asking:
    """Different questions by their keys, which are asked now. again: see `Entry`."""

    answerer: Answerer
    questions: Mapping[str, Question]
    decoding: Decoding
    log: ReplyLog | None
    sample: int
    again: int = 0

    def outcomes(self, progress: Callable[[int], None]) -> dict[str, Outcome]:
        """Replies are in the log before the next one is asked for, failures at the end."""
        keys, found = list(self.questions), dict[str, Outcome]()
        if not keys:
            return found
        how = self.decoding.of_sample(self.sample)
        for number, outcome in self.answerer.answers(list(self.questions.values()), how):
            found[keys[number]] = outcome
            if isinstance(outcome, Reply):
                self._keep(keys[number], outcome)
            progress(len(found))
        for key, outcome in found.items():
            if isinstance(outcome, Failure):
                self._keep(key, outcome)
        missing = [number for number, key in enumerate(keys, 1) if key not in found]
        if missing:
            problem = f"{self.answerer.identity} told nothing of {len(missing)} questions"
            raise InputError(problem, record=missing[0], cure="Repair its `answers`")
        return found

    def _keep(self, key: str, outcome: Outcome) -> None:
        if self.log is None:
            return
        entry = Entry(key, self.answerer.identity, outcome, self.again)
        write = partial(self.log.add, self.questions[key], self.decoding, self.sample, entry)
        if self.answerer.together:  # the others fail as the first host fails
            on_first(write)
        else:
            write()


def _of_others(kept: Kept, before: Mapping[str, Entry], left: Sequence[str]) -> dict[str, Outcome]:
    """What other processes ask, as soon as the log holds it.

    A failure that was there before is owed again, unless that process has asked it again as often as this one asks.
    Where nobody asks it again it stands.
    """
    if not left or kept.log is None:
        return {}
    folder, again = os.fspath(kept.log.folder), kept.again(before)

    def owed() -> dict[str, int]:
        now = kept.entries()
        return {
            f"{folder}, reply {key[:12]}": kept.owner(key)
            for key in left
            if key not in now or (now[key] is before.get(key) and now[key].again < again)
        }

    try:
        wait_for(owed, HostSettings(patience=kept.patience))
    except InputError:
        if any(key not in kept.entries() for key in left):
            raise
    now = kept.entries()
    return {key: now[key].outcome for key in left}
