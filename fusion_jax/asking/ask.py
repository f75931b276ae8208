"""Asking everything once: what the log holds is taken from it, questions that are alike are asked together, and of
several processes none asks what another one asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import numpy as np

from fusion_jax.asking.contract import Answerer, Decoding, Failure, Outcome, Question, Reply
from fusion_jax.asking.log import Entry, ReplyLog, key_of
from fusion_jax.errors import InputError
from fusion_jax.hosts.agree import agreed, first_host, on_first, seen, wait_for
from fusion_jax.hosts.join import Host, HostSettings

Progress = Callable[[int, int], None]


def ask(
    answerer: Answerer,
    questions: Sequence[Question],
    decoding: Decoding,
    log: ReplyLog | None = None,
    *,
    sample: int = 0,
    share: Host = Host(),
    patience: float = 1800.0,
    failed_again: bool = False,
    progress: Progress = lambda done, of: None,
) -> list[Outcome]:
    """The outcome of every question, in order; each different one is asked once for a sample number.

    Hosts that share a mesh call it in step: a model's hosts compute together, and of a server the first host asks. Of
    processes that are not connected each asks its share, then waits for the log to hold the others'.

    Args:
      log: what was answered before, and where replies are kept as they come. Failures are kept when all is asked, so
        that a run that was stopped asks those again.
      sample: another number is another reply to the same question, where the temperature is not 0.
      share: this process among those that share the log and are not connected; each has a file of its own.
      patience: seconds without a new line after which the others count as lost.
      failed_again: whether questions that the log holds as failed are asked again.
      progress: told how many different questions have an outcome, of how many.

    Raises:
      InputError: as the answerer and the log; hosts or processes that share nothing but have to.
    """
    every = [key_of(answerer.identity, one, decoding, sample) for one in questions]
    first = dict(zip(every, questions, strict=True))
    keys = list(first)
    if log is None and (share.count > 1 or (jax.process_count() > 1 and not answerer.together)):
        raise InputError("several processes ask, which need a log", field="log", cure="Give a ReplyLog")
    known = _known(log, keys, failed_again)
    mine = [key for key in keys if key not in known and int(key[:12], 16) % share.count == share.index]
    progress(len(known), len(keys))

    def told(done: int) -> None:
        progress(len(known) + done, len(keys))

    def asked() -> None:
        found.update(_asked(answerer, {key: first[key] for key in mine}, decoding, log, sample, told))

    found: dict[str, Outcome] = dict(known)
    if answerer.together:
        asked()
    else:
        on_first(asked)
    if log is not None:
        _wait(log, [key for key in keys if key not in found], share, patience, found)
    return [found[key] for key in every]


def failures(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How many questions failed, by reason."""
    return Counter(one.reason for one in outcomes if isinstance(one, Failure))


def _known(log: ReplyLog | None, keys: Sequence[str], failed_again: bool) -> dict[str, Outcome]:
    """What need not be asked, the same on all hosts that are connected."""
    if log is None:
        return {}
    entries = log.entries() if first_host() else {}
    there = [key in entries and not (failed_again and isinstance(entries[key].outcome, Failure)) for key in keys]
    mask = agreed(np.asarray(there, bool)) if keys else np.zeros(0, bool)
    wanted = [key for key, known in zip(keys, mask.tolist(), strict=True) if known]
    if wanted:
        seen(log.folder, lambda folder: set(wanted) <= log.entries().keys())
    held = log.entries() if wanted else {}
    return {key: held[key].outcome for key in wanted}


def _asked(
    answerer: Answerer,
    questions: dict[str, Question],
    decoding: Decoding,
    log: ReplyLog | None,
    sample: int,
    progress: Callable[[int], None],
) -> dict[str, Outcome]:
    """Outcomes of different questions; replies are in the log before the next one is asked for, failures at the end."""
    keys, found = list(questions), dict[str, Outcome]()

    def keep(key: str, outcome: Outcome) -> None:
        if log is None:
            return
        write = partial(log.add, questions[key], decoding, sample, Entry(key, answerer.identity, outcome))
        if answerer.together:  # the others fail as the first host fails
            on_first(write)
        else:
            write()

    if not keys:
        return found
    for number, outcome in answerer.answers(list(questions.values()), decoding.of_sample(sample)):
        found[keys[number]] = outcome
        if isinstance(outcome, Reply):
            keep(keys[number], outcome)
        progress(len(found))
    for key, outcome in found.items():
        if isinstance(outcome, Failure):
            keep(key, outcome)
    missing = [number for number, key in enumerate(keys, 1) if key not in found]
    if missing:
        problem = f"{answerer.identity} told nothing of {len(missing)} questions"
        raise InputError(problem, record=missing[0], cure="Repair its `answers`")
    return found


def _wait(log: ReplyLog, left: Sequence[str], share: Host, patience: float, found: dict[str, Outcome]) -> None:
    """Take what other processes have asked out of the log, where it is not there yet when it is."""
    if share.count > 1:

        def owed() -> dict[str, int]:
            entries = log.entries()
            return {
                f"{os.fspath(log.folder)}, reply {key[:12]}": int(key[:12], 16) % share.count
                for key in left
                if key not in entries
            }

        wait_for(owed, HostSettings(patience=patience))
    elif jax.process_count() > 1:
        seen(log.folder, lambda folder: set(left) <= log.entries().keys())
    held = log.entries() if left else {}
    found.update((key, held[key].outcome) for key in left)
