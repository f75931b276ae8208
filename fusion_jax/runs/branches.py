"""What each winner says of the text that it won, on the target's tokens, and the order in which both modes are learnt.

Stages S5 to S7 of ProFuser (arXiv 2408.04998, sections 3, 5 and 7 of its specification).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from fusion_jax.data.batches import Data, Example
from fusion_jax.data.documents import Document, TeacherText, encode_documents
from fusion_jax.data.order import Stages, grouped_order, num_steps
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.lazy import Lazy
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.runs.advantages import StageSettings
from fusion_jax.runs.panel import Panel
from fusion_jax.store.manifest import digest
from fusion_jax.teachers.documents import Reading, part_of
from fusion_jax.teachers.live import live_data
from fusion_jax.teachers.opinions import own_opinions, source_opinions
from fusion_jax.teachers.rows import Opinion, Opinions, fusion_rows
from fusion_jax.teachers.targets import fused_examples, identity_of
from fusion_jax.train.objectives import INFERENCE, TRAINING
from fusion_jax.train.settings import TrainSettings

Mode = Literal["infer", "train"]
MODES: Mapping[Mode, str] = {"infer": "own answers", "train": "right answers"}


class Branch(NamedTuple):
    """One mode's rows. numbers: the instruction of each example; made_of: what the examples are known by; taught: as of
    `Data`, of live sources."""

    numbers: Sequence[int]
    examples: Sequence[Example]
    made_of: str
    taught: Callable[[Sequence[int]], list[Example]] | None = None


Ours = tuple[Document, TeacherText]
"""A text as the target reads it."""


class Won(NamedTuple):
    """The instructions that a source won, and what it read of them: its documents, in the order of `numbers`."""

    numbers: Sequence[int]
    reading: Reading


def right_answers(panel: Panel, labels: Sequence[Record], readings: Mapping[str, Reading]) -> Branch:
    """The branch of training mode: right answers, with the distributions of the source that they surprise least.

    Args:
      readings: of every source, the target first, of all right answers.
    """
    like = readings[panel.names[0]]
    ours = dict(enumerate(zip(like.documents, like.texts, strict=True)))
    won = {name: numbers_won(labels, "train", name) for name in panel.names}
    parts = {name: Won(some, part_of(readings[name], some)) for name, some in won.items() if some}
    return _branch(panel, "train", parts, ours, like)


def own_answers(
    panel: Panel, instructions: Sequence[Record], labels: Sequence[Record], answers: Mapping[str, Sequence[Record]],
    like: Reading,
) -> Branch:  # fmt: skip
    """The branch of inference mode: the answer with most votes, with the distributions of its author (S5).

    Args:
      like: what the target has read of other texts.
    """
    target, ours, parts = panel.names[0], dict[int, Ours](), dict[str, Won]()
    tokenizer = tokenizer_of(panel.folders[target])
    for name in panel.names:
        numbers = numbers_won(labels, "infer", name)
        records = [instructions[i] | {"response": answers[name][i]["text"]} for i in numbers]
        kept, found = panel.whole(records, f"own answers of {name}", list(dict.fromkeys([target, name])))
        if kept:
            numbers = [numbers[i] for i in kept]
            texts = encode_documents(tokenizer, found[target], max_length=panel.limit)
            ours |= zip(numbers, zip(found[target], texts, strict=True), strict=True)
            parts[name] = Won(numbers, panel.read(name, "winners", found[name]))
    return _branch(panel, "infer", parts, ours, like)


def numbers_won(labels: Sequence[Record], mode: Mode, name: str) -> list[int]:
    """The instructions that a source won in a mode."""
    return [i for i, label in enumerate(labels) if label[f"{mode}_winner"] == name]


def _branch(panel: Panel, mode: Mode, parts: Mapping[str, Won], ours: Mapping[int, Ours], like: Reading) -> Branch:
    """One example for each instruction that a source won, in the order of the instructions.

    Args:
      ours: the target's view of the texts, by the number of their instruction.

    Raises:
      InputError: nobody won any; a source of which too little reaches the target's tokens.
    """
    if not parts:
        cure = "Look at the sources' answers, the judges' scores and what was left out, in the run's folder"
        raise InputError(f"no {MODES[mode][:-1]} of a winner is left to learn from", field="sources", cure=cure)
    s, run, found = panel.settings, panel.desk.run, dict[str, Opinions]()
    for name, won in parts.items():
        if name == panel.names[0]:
            found[name] = own_opinions(won.reading, s.fusion)
            continue
        documents, texts = zip(*(ours[i] for i in won.numbers), strict=True)
        pivot = like._replace(documents=documents, texts=texts)  # whose rows are not asked for
        folder = run.sub("aligned").file(name if s.align.tokens == "prefix" else f"{mode}-{name}")
        with run.timed(f"aligning {mode}, {name}"):
            found[name], reach = source_opinions(
                folder, pivot, won.reading, s.align, s.fusion, whole=False, progress=run.progress
            )
        panel.note_reach(MODES[mode], name, reach, len(won.numbers))
    order = sorted((number, name, place) for name, won in parts.items() for place, number in enumerate(won.numbers))
    metrics = np.asarray([found[name].metrics[place] for _, name, place in order])
    made_of = " ".join([digest({str(n): name for n, name, _ in order}), *(one.made_of for one in found.values())])

    def together(wanted: Sequence[int]) -> list[Opinion]:
        said = dict[int, Opinion]()
        for name in dict.fromkeys(order[i][1] for i in wanted):
            some = [i for i in wanted if order[i][1] == name]
            said |= zip(some, found[name].some([order[i][2] for i in some]), strict=True)
        return [said[i] for i in wanted]

    scored = np.asarray([found[name].scored[place] for _, name, place in order])
    joined = Opinions(metrics, lambda i: together([i])[0], made_of, together, scored)
    rows, _ = fusion_rows([ours[number][1] for number, *_ in order], [joined])
    numbers = [order[i][0] for i in np.flatnonzero(scored).tolist()]
    if s.teachers == "live":
        data = live_data(rows, s.fusion, k=s.k, mask="labels")
        return Branch(numbers, data.examples, digest(identity_of(rows, s.fusion, "labels", False)), data.taught)
    examples = fused_examples(run.sub("branches").file(mode), rows, s.fusion, mask="labels")
    return Branch(numbers, examples, digest(examples.made_of))


@dataclass(frozen=True)
class Curriculum:
    """What is learnt. only: rows of one mode, None: of both in the order of `loss`."""

    loss: StageSettings
    only: Mode | None = None


def arms_of(loss: StageSettings) -> dict[str, Curriculum]:
    """What can be trained. In an arm of one mode all steps are of the first stage, which has its mode alone."""
    forward, backward = replace(loss, order="progressive"), replace(loss, order="reverse")
    return {
        "profuser": Curriculum(loss),
        "simul": Curriculum(replace(loss, order="simul")),
        "reverse": Curriculum(backward),
        "infer": Curriculum(forward, "infer"),
        "train": Curriculum(backward, "train"),
        "SFT": Curriculum(replace(backward, beta=0.0), "train"),
    }


def staged(
    branches: Mapping[Mode, Branch], arm: Curriculum, train: TrainSettings, names: Sequence[str]
) -> tuple[Data, int]:
    """The rows of an arm, their order, and the optimizer steps of its first stage.

    The first stage has rows of one mode; the second one, as many in a batch, pairs of rows of one instruction. All arms
    have as many steps as this, whether they learn both modes from the start (simul) or one alone.

    Args:
      names: of the instructions.

    Raises:
      InputError: fewer rows than a batch, or an odd batch.
    """
    s, (infer, taught) = arm.loss, (branches["infer"], branches["train"])
    first, numbers = len(infer.examples), [*infer.numbers, *taught.numbers]

    def placed(own: Example, i: int) -> Example:
        return replace(own, index=i, branch=INFERENCE if i < first else TRAINING)

    def asked(wanted: Sequence[int]) -> list[Example]:
        """Of live sources: the rows of each mode are asked for together."""
        said = dict[int, Example]()
        for mode, begin in ((infer, 0), (taught, first)):
            some = [i for i in wanted if (i >= first) == bool(begin)]
            if some:
                assert mode.taught is not None  # as the other has one
                said |= zip(some, mode.taught([i - begin for i in some]), strict=True)
        return [placed(said[i], i) for i in wanted]

    examples = Lazy(len(numbers), lambda i: placed(infer.examples[i] if i < first else taught.examples[i - first], i))
    lengths = [len(one.rows[0]) for one in examples]

    def ordered(groups: np.ndarray, steps: int, seed: int) -> Sequence[np.ndarray]:
        how = {"batch_size": train.batch_size, "bucket_window": train.bucket_window}
        return grouped_order(groups, lengths, steps=steps, seed=seed, **how) if steps else []

    places = {number: i + first for i, number in enumerate(taught.numbers)}
    pairs = np.asarray([(i, places[n]) for i, n in enumerate(infer.numbers) if n in places], np.int64).reshape(-1, 2)
    alone: dict[Mode, np.ndarray] = {
        "infer": np.arange(first)[:, None], "train": np.arange(first, len(numbers))[:, None]
    }  # fmt: skip
    begin = num_steps(first, train.batch_size, s.first_epochs) if s.first_epochs else 0
    rest = num_steps(len(pairs), train.batch_size // 2, s.both_epochs) if s.both_epochs else 0
    if arm.only is not None or s.order == "simul":
        begin, rest = begin + rest, 0
    mode: Mode = arm.only or ("train" if s.order == "reverse" else "infer")
    begins = ordered(pairs if arm.only is None and s.order == "simul" else alone[mode], begin, train.seed)
    both = ordered(pairs, rest, train.seed + 1)
    told = [f"{names[n]}, {'own answer' if i < first else 'right answer'}" for i, n in enumerate(numbers)]
    live = None if infer.taught is None else asked
    return Data(examples, told.__getitem__, Stages([begins, both]), live), len(begins)
