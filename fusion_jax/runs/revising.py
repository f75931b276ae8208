"""A reviser as a service: what it is trained on, and what it makes of a draft (SEFT, arXiv 2406.10813).

Its rules stand in `rewards.revision`. A reviser reads a conversation with a draft as one message of its own chat, and
answers with a label and, behind any label but KEEP, with a revision.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fusion_jax.data.batches import Data, Example, buckets_for
from fusion_jax.data.chat import stop_token_ids
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.records import Conversation, Row
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import place_params
from fusion_jax.rewards.revision import (
    KEEP,
    LABELS,
    LabelRules,
    Wording,
    fault_of,
    labelled,
    reviser_prompt,
    target_of,
)
from fusion_jax.runs.reading import TOO_LONG, Asked, fitted, readable
from fusion_jax.sampling.generate import Completion, SampleSettings, decoding_mesh, generate_ids, sampling_dtype
from fusion_jax.sampling.stops import Stops
from fusion_jax.settings import bounded
from fusion_jax.train.fused_objectives import LABEL, REVISION
from fusion_jax.train.reference import sequence_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Measure = Literal["effort", "gain", "edits", "random"]


@dataclass(frozen=True)
class RevisingSettings:
    """What a reviser is asked, what it learns from, and when it keeps a draft."""

    wording: Wording = "message"
    """How it is asked: in one message with instructions, or as turns of a chat, the draft being the answer to the last
    message, which then stands there again (for models that read no instructions)."""
    rules: LabelRules = LabelRules()
    difficulty: Measure = "effort"
    """What tells how hard a revision is: the good answer's nats a token given the bad one (effort), that less the nats
    without the bad one (gain), the share of the text that differs (edits), or chance (random)."""
    adapt_from: Literal["warm-up", "base"] = "warm-up"
    """What the reviser with labels starts from: the one without, or the model before it."""
    label_weight: float = 1.0
    """Weight of the labels' token mean beside that of the revisions."""
    held_out: float = 1 / 30
    """Share of the pairs on which the threshold is calibrated and the reviser is measured."""
    preserve: float = 0.9
    """Share of the good held-out answers that the calibrated threshold keeps."""

    def __post_init__(self) -> None:
        bounded(self, "held_out", least=0, below=1)
        bounded(self, "preserve", above=0, most=1)
        bounded(self, "label_weight", least=0)


class Pair(NamedTuple):
    """A conversation with a good and a bad answer; known: what else its record says, "answer" for instance."""

    name: str
    messages: Conversation
    chosen: str
    rejected: str
    known: Record


class Spelling(NamedTuple):
    """How a tokenizer begins an answer: the ids of the template's header, then those of one of the labels."""

    header: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reviser:
    """A model that revises drafts.

    rules: of its labels; None for one that always revises. text: how it reads; compute, batch_size: on what and how
    many drafts at once. threshold: drafts with at least this p_keep are kept.
    """

    model: Model
    rules: LabelRules | None
    wording: Wording
    text: TextSettings
    compute: Compute
    batch_size: int = 32
    threshold: float = 0.5

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        assert self.model.tokenizer is not None
        return self.model.tokenizer

    @property
    def spelled(self) -> Spelling:
        """How it begins its answers."""
        return spelling(self.tokenizer, self.text, self.rules)

    def message(self, asked: Asked) -> Conversation:
        """What it is asked about a draft: in one message or, where `wording` is "turns", the draft as an answer and the
        last message again."""
        if self.wording == "turns":
            return (*asked.messages, {"role": "assistant", "content": asked.draft}, asked.messages[-1])
        labels = self.rules.labels if self.rules else 0
        return ({"role": "user", "content": reviser_prompt(asked.messages, asked.draft, labels)},)

    def fitted(self, asked: Sequence[Asked], answers: Sequence[str]) -> tuple[list[Asked | None], dict[int, Example]]:
        """See `reading.fitted`."""
        return fitted(self.message, asked, answers, self.tokenizer, self.text)


def spelling(tokenizer: PreTrainedTokenizerBase, text: TextSettings, rules: LabelRules | None) -> Spelling:
    """The ids of the header and of the labels, as answers begin with them: all tokens that hold a part of the label.

    The line's end behind a label may be in its last token, but nothing of the revision.

    Raises:
      InputError: the template or the tokenizer cannot write a label, or merges it with the revision, or begins another
        label with it.
    """
    labels = LABELS[rules.labels] if rules else LABELS[2][:1]
    alone = {KEEP} if rules is None or rules.keep_target == "label" else set()
    said = {label: (label,) if label in alone else (f"{label}\na", f"{label}\n7 B") for label in labels}
    asked: Conversation = ({"role": "user", "content": "a"},)
    rows = [Row(label, asked, (answer,)) for label in labels for answer in said[label]]
    examples, _ = make_examples(rows, tokenizer, text)
    found = [(rows[e.index].name, _placed(tokenizer, rows[e.index].name, e.rows[0][e.starts[0] :])) for e in examples]
    headers, ids = {header for _, (header, _) in found}, {label: own for label, (_, own) in found}
    for label in labels:
        if label not in ids:
            raise _refused(tokenizer, label, "the chat template changes it")
        if len(headers) > 1 or any(own != ids[label] for name, (_, own) in found if name == label):
            raise _refused(tokenizer, label, "the tokenizer merges it with what stands beside it")
        if any(ids[label] == ids[other][: len(ids[label])] for other in labels if other != label):
            raise _refused(tokenizer, label, "its tokens are also the beginning of another label's")
    return Spelling(headers.pop(), tuple(ids[label] for label in labels))


def _placed(
    tokenizer: PreTrainedTokenizerBase, label: str, answer: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An answer's ids before a label, and those that hold a part of it."""
    end = next((k for k in range(1, len(answer) + 1) if label in tokenizer.decode(list(answer[:k]))), 0)
    if not end:
        problem = f"the tokenizer cannot write it: {tokenizer.decode(list(answer))!r} is what it reads"
        raise _refused(tokenizer, label, problem)
    begin = next(j for j in range(end - 1, -1, -1) if label in tokenizer.decode(list(answer[j:end])))
    if tokenizer.decode(list(answer[begin:end])).strip() != label:
        raise _refused(tokenizer, label, "the tokenizer merges it with what stands beside it")
    return tuple(answer[:begin]), tuple(answer[begin:end])


def _refused(tokenizer: PreTrainedTokenizerBase, label: str, problem: str) -> InputError:
    return InputError(
        problem, file=tokenizer.name_or_path, field=f"the reviser's label {label}",
        cure="Give a --reviser whose tokenizer writes labels in tokens of their own",
    )  # fmt: skip


def fitting_pairs(reviser: Reviser, pairs: Sequence[Pair], counts: Counter[str]) -> list[Pair]:
    """Pairs whose bad answer the reviser can read with the good one behind it, their conversations cut where needed;
    those that it cannot are counted."""
    found, _ = reviser.fitted([Asked(p.messages, p.rejected) for p in pairs], [p.chosen for p in pairs])
    counts[TOO_LONG] += found.count(None)
    return [p._replace(messages=one.messages) for p, one in zip(pairs, found) if one]


def fitting_drafts(reviser: Reviser, records: Sequence[Record], counts: Counter[str]) -> list[Record]:
    """As `fitting_pairs`, of records of `label_records`."""
    asked = [Asked(tuple(r["messages"]), r["draft"]) for r in records]
    found, _ = reviser.fitted(asked, [target_of(r["label"], r["target"]) for r in records])
    counts[TOO_LONG] += found.count(None)
    return [r | {"messages": list(one.messages)} for r, one in zip(records, found) if one]


def revision_rows(reviser: Reviser, pairs: Sequence[Pair]) -> list[Row]:
    """What a reviser without labels learns: the good answer, given the bad one as draft."""
    return [Row(p.name, reviser.message(Asked(p.messages, p.rejected)), (p.chosen,)) for p in pairs]


def label_records(
    pairs: Sequence[Pair], hard: Sequence[Record], rules: LabelRules, seed: int, counts: Counter[str]
) -> list[Record]:
    """Drafts with labels: {"pair_id", "messages", "draft", "label", "target", "kind"}, kind "high" for a good answer.

    Args:
      hard: of `difficulty`. seed: see `labelled`. counts: what is dropped, and how many drafts have each label, is
        added to it.
    """
    known = [i for i, record in enumerate(hard) if record["d"] is not None]
    counts["pair changed by the chat template"] += len(hard) - len(known)
    out = []
    for draft in labelled(np.asarray([hard[i]["d"] for i in known]), rules, seed, counts):
        counts[f"draft with {draft.label}"] += 1
        pair = pairs[known[draft.pair]]
        said = pair.chosen if draft.good else pair.rejected
        kept = said if rules.keep_target == "copy" else None
        out.append({
            "pair_id": pair.name, "messages": list(pair.messages), "draft": said, "label": draft.label,
            "target": kept if draft.good else pair.chosen, "kind": "high" if draft.good else "low",
        })  # fmt: skip
    return out


def label_rows(reviser: Reviser, records: Sequence[Record]) -> list[Row]:
    """What a reviser with labels learns."""
    return [
        Row(
            f"{r['pair_id']} ({r['kind']})", reviser.message(Asked(tuple(r["messages"]), r["draft"])),
            (target_of(r["label"], r["target"]),),
        )
        for r in records
    ]  # fmt: skip


def marked(reviser: Reviser, records: Sequence[Record], data: Data, counts: Counter[str]) -> Data:
    """Examples of `label_rows` with `Example.groups`: tokens of the label and, behind it, of the revision.

    The header is not scored; the end of the turn behind a label without a revision belongs to the label. An example
    whose label is spelled otherwise than alone is dropped and counted.

    Raises:
      InputError: all of them are.
    """
    assert reviser.rules is not None
    labels, spelled, out = LABELS[reviser.rules.labels], reviser.spelled, list[Example]()
    for example in data.examples:
        record, row = records[example.index], example.rows[0]
        ids = spelled.labels[labels.index(record["label"])]
        at = example.starts[0] + len(spelled.header)
        if row[at : at + len(ids)] != ids:
            counts["label in other tokens than alone"] += 1
            continue
        groups = np.zeros(len(row), np.uint8)
        groups[at:] = REVISION if record["target"] is not None else LABEL
        groups[at : at + len(ids)] = LABEL
        out.append(dataclasses.replace(example, groups=groups))
    if data.examples and not out:
        problem, name = "the tokenizer writes labels in other tokens than alone", data.name(data.examples[0].index)
        raise InputError(problem, record=name, field="label", cure="Give another --reviser")
    return Data(out, data.name)


def difficulty(reviser: Reviser, pairs: Sequence[Pair], measure: Measure, seed: int) -> list[Record]:
    """How hard it is to revise each pair's bad answer: {"pair_id", "d", ...}; higher is harder, None is unreadable.

    effort: a = -log p(good | conversation, bad) / tokens, under the reviser without labels. gain: a - b, where b is the
    same without the draft, so that a draft that helps is easy. edits: the share of the text that differs. random.
    """
    if measure == "random":
        values = np.random.default_rng(seed).random(len(pairs))
        return [{"pair_id": p.name, "d": float(d)} for p, d in zip(pairs, values)]
    if measure == "edits":
        from rapidfuzz.distance import Levenshtein

        return [{"pair_id": p.name, "d": Levenshtein.normalized_distance(p.rejected, p.chosen)} for p in pairs]
    header = len(reviser.spelled.header)
    with_draft = _nats(reviser, revision_rows(reviser, pairs), header)
    alone: list[tuple[float, int] | None] = [(0.0, 1)] * len(pairs)
    if measure == "gain":
        alone = _nats(reviser, [Row(p.name, p.messages, (p.chosen,)) for p in pairs], header)
    out = list[Record]()
    for pair, revision, prior in zip(pairs, with_draft, alone):
        if revision is None or prior is None:
            out.append({"pair_id": pair.name, "d": None})
            continue
        record = {"pair_id": pair.name, "nll_rev": revision[0], "n_rev": revision[1]}
        if measure == "gain":
            record |= {"nll_prior": prior[0], "n_prior": prior[1]}
        out.append(record | {"d": revision[0] / revision[1] - prior[0] / prior[1]})
    return out


def _nats(reviser: Reviser, rows: Sequence[Row], header: int) -> list[tuple[float, int] | None]:
    """-log p of each row's response and its tokens, the end of the turn included and the header left out; None where
    the template changes its text."""
    examples, _ = readable(rows, reviser.tokenizer, reviser.text)
    cut = [dataclasses.replace(e, starts=(e.starts[0] + header,)) for e in examples]
    values = _logprobs(reviser, cut)
    found: list[tuple[float, int] | None] = [None] * len(rows)
    for example, value in zip(cut, values):
        found[example.index] = (-float(value[0]), example.scored[0])
    return found


def _logprobs(reviser: Reviser, examples: Sequence[Example]) -> np.ndarray:
    """float32[n,G], log-probs of the rows under the reviser."""
    model, data = reviser.model, Data(examples)
    if not examples:
        return np.zeros((0, 1), np.float32)
    params = place_params(model.params, model.config, reviser.compute.mesh)
    return sequence_logprobs(
        params, model.config, data, reviser.compute, batch_size=reviser.batch_size, buckets=buckets_for(data.extents)
    )


def prefixes(reviser: Reviser, asked: Sequence[Asked]) -> list[tuple[int, ...] | None]:
    """The ids behind which the reviser writes its answer to each draft; None where the template changes the draft, or
    where it is too long."""
    header = len(reviser.spelled.header)
    _, examples = reviser.fitted(asked, [KEEP] * len(asked))
    return [
        e.rows[0][: e.starts[0] + header] if (e := examples.get(i)) is not None else None for i in range(len(asked))
    ]  # fmt: skip


def decide(reviser: Reviser, asked: Sequence[Asked]) -> np.ndarray:
    """float64[n, labels], the log-prob of each label as the beginning of the reviser's answer; NaN: unreadable.

    All labels of a draft are rows that share its prompt.
    """
    spelled = reviser.spelled
    examples = [
        Example(tuple(prefix + ids for ids in spelled.labels), (len(prefix),) * len(spelled.labels), i)
        for i, prefix in enumerate(prefixes(reviser, asked))
        if prefix is not None
    ]
    found = np.full((len(asked), len(spelled.labels)), np.nan)
    found[[e.index for e in examples]] = _logprobs(reviser, examples)
    return found


class Revision(NamedTuple):
    """A draft's revision. why: the fault for which it does not count, or ""; tokens: of the draft and of it."""

    text: str
    why: str
    tokens: tuple[int, int] = (0, 0)


def revise(
    reviser: Reviser, asked: Sequence[Asked], scores: np.ndarray | None, how: SampleSettings, seed: int
) -> list[Revision]:
    """A revision of each draft, behind its most probable label but KEEP; without labels behind none.

    Args:
      scores: of `decide`, None for a reviser without labels.
    """
    tokenizer, spelled = reviser.tokenizer, reviser.spelled
    if scores is None:
        labels: list[tuple[int, ...]] = [()] * len(asked)
    else:
        labels = [spelled.labels[1 + int(np.argmax(np.nan_to_num(s[1:], nan=-np.inf)))] for s in scores]
    room = reviser.model.config.max_positions - how.max_new_tokens
    begun = {i: [*ids, *labels[i]] for i, ids in enumerate(prefixes(reviser, asked)) if ids is not None}
    there = [i for i, ids in begun.items() if len(ids) <= room]
    written = completions(reviser.model, [begun[i] for i in there], how, seed)
    found = [Revision("", "unreadable")] * len(asked)
    for i, [one] in zip(there, written):
        draft = asked[i].draft
        lengths = len(tokenizer(draft, add_special_tokens=False)["input_ids"]), one.tokens
        found[i] = Revision(one.text, fault_of(draft, one.text, finished=one.finished, lengths=lengths), lengths)
    return found


class Written(NamedTuple):
    """A completion as text; logprob: its log-probability under the model."""

    text: str
    finished: bool
    tokens: int
    logprob: float


def completions(model: Model, prompts: Sequence[Sequence[int]], how: SampleSettings, seed: int) -> list[list[Written]]:
    """`how.num_samples` completions of each prompt in ids."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    stops = Stops(tokenizer, how.stop_strings)
    found = generate_ids(
        model.params, model.config, prompts, max_new_tokens=how.max_new_tokens, sampler=how.sampler, seed=seed,
        num_samples=how.num_samples, stop_ids=stop_token_ids(tokenizer, model.generation) + stops.ids,
        ended=stops.ended if how.stop_strings else None, search=how.search, batch_size=how.batch_size,
        mesh=decoding_mesh(model.config, how.mesh_tensor), dtype=sampling_dtype(model),
    )  # fmt: skip

    def of(completion: Completion) -> Written:
        text, stopped = stops.said(completion.ids)
        return Written(text.strip(), completion.finished or stopped, len(completion.ids), completion.logprob)

    return [[of(one) for one in each] for each in found]
