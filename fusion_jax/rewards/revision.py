"""SEFT (arXiv 2406.10813): what a reviser reads and writes, when it keeps a draft, and which revisions count.

Sections 3 to 5 of its specification. What the paper leaves open is a decision of that document; `docs/papers.md` lists
them. A reviser reads a conversation and a draft, answers with a label, and behind any label but KEEP with a revision.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusion_jax.data.records import Message
from fusion_jax.settings import bounded

KEEP, REVISE, MINOR, MAJOR = "[KEEP]", "[REVISE]", "[MINOR]", "[MAJOR]"
Wording = Literal["message", "turns"]
LABELS: dict[int, tuple[str, ...]] = {2: (KEEP, REVISE), 3: (KEEP, MINOR, MAJOR)}
HEADINGS = ("### Conversation", "### Draft")
_TASK = "Below are a conversation and a draft reply to its last message."
_RULES = {
    0: "Output an improved reply and nothing else.",
    2: f"First output a label: {KEEP} if the draft is already a good reply, or {REVISE} if it should be improved. "
    f"After {REVISE}, output the improved reply and nothing else.",
    3: f"First output a label: {KEEP} if the draft is already a good reply, {MINOR} if little of it should be "
    f"improved, or {MAJOR} if much of it should. After {MINOR} or {MAJOR}, output the improved reply and nothing else.",
}


REFUSES = "the preferred answer refuses"
_SORRY = r"((i['\u2019]m |i am )?((really|very|so) )?sorry|i apologi[sz]e|unfortunately)"
_CANNOT = (
    r"((i|we) (cannot|can['\u2019]?t|won['\u2019]?t|will not|am unable to|am not able to)"
    r"|i['\u2019]m (unable|not able) to)"
)
_ASKED = (
    r"(help|assist|provide|answer|comply|fulfil|fulfill|discuss|engage|create|write|generate|support|participate|"
    r"offer|give|share|do|continue|respond|complete)"
)
_REFUSAL = re.compile(rf"\s*(as an ai\b|({_SORRY}\W+(but )?)?{_CANNOT} ({_ASKED})\b)", re.IGNORECASE)


def refuses(answer: str) -> bool:
    """Whether an answer begins as refusals do: "I'm sorry, but I can't help ...", "As an AI ..."."""
    return _REFUSAL.match(answer) is not None


def reviser_prompt(messages: Sequence[Message], draft: str, labels: int = 2) -> str:
    """The one message that a reviser reads.

    Args:
      messages: the conversation up to the message that the draft answers. labels: 2 or 3, or 0 for a reviser that
        always revises.
    """
    if len(messages) == 1:
        conversation = messages[0]["content"]
    else:
        conversation = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
    parts = (_TASK, _RULES[labels], HEADINGS[0], _escaped(conversation), HEADINGS[1], _escaped(draft))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """Headings inside a text do not look like those of the prompt: nowhere do three # follow each other."""
    return re.sub("#(?=##)", "# ", text)


def target_of(label: str, revision: str | None) -> str:
    """What a reviser should answer: the label, and the revision, without white space around it, in the line below."""
    return label if revision is None else f"{label}\n{revision.strip()}"


def p_keep(label_logprobs: np.ndarray) -> np.ndarray:
    """float64[n], exp(s_KEEP) over the sum of exp(s) of all labels, of log-probs float[n,labels] with KEEP first."""
    scores = np.asarray(label_logprobs, np.float64)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers[:, 0] / powers.sum(-1)


def keep_threshold(good: np.ndarray, preserve: float = 0.9) -> float:
    """The largest threshold that keeps at least a share `preserve` of good drafts, given their p_keep; .5 without any.

    >>> keep_threshold(np.asarray([0.9, 0.8, 0.7, 0.2]), 0.75)
    0.7
    """
    if not len(good):
        return 0.5
    descending = np.sort(np.asarray(good, np.float64))[::-1]
    return float(descending[max(int(np.ceil(preserve * len(good) - 1e-9)), 1) - 1])


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """Probability that a good draft has a higher p_keep than a bad one, equal ones counted half (Mann-Whitney).

    >>> auc(np.asarray([0.9, 0.5]), np.asarray([0.5, 0.1]))
    0.875
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([good, bad]))
    above = ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2
    return float(above / (len(good) * len(bad)))


@dataclass(frozen=True)
class LabelRules:
    """Which drafts an adaptive reviser learns from, and with which labels."""

    labels: Literal[2, 3] = 2
    """KEEP and REVISE, or KEEP, MINOR and MAJOR."""
    near: Literal["drop", "keep"] = "drop"
    """What becomes of bad drafts that are nearly as good as the good ones: the tenth that is easiest to revise."""
    keep_per_revise: float = 0.5
    """Good drafts, to be kept, for each bad one, to be revised."""
    keep_target: Literal["label", "copy"] = "label"
    """What stands behind KEEP: nothing, or the draft again."""

    def __post_init__(self) -> None:
        bounded(self, "keep_per_revise", above=0)


@dataclass(frozen=True)
class Draft:
    """A draft that a reviser learns from: of which pair, whether it is the good one, its label."""

    pair: int
    good: bool
    label: str


def labelled(difficulty: np.ndarray, rules: LabelRules, seed: int, dropped: Counter[str]) -> list[Draft]:
    """Drafts with labels, in the order of the pairs; of a pair either the good or the bad one, never both.

    A bad draft is to be revised; among three labels it is MAJOR where its difficulty is above the median.

    Args:
      difficulty: float[n], of the pairs: nats a token of the good response, given the bad one as draft.
      seed: decides which of a pair's two drafts is learnt from. dropped: what is left out is added to it.
    """
    difficulty = np.asarray(difficulty, np.float64)
    tenth, half = np.quantile(difficulty, [0.1, 0.5]) if len(difficulty) else (0.0, 0.0)
    order = np.random.default_rng(seed).permutation(len(difficulty))
    wanted = round(len(order) * rules.keep_per_revise / (1 + rules.keep_per_revise))
    good = set(order[:wanted].tolist())
    out = []
    for i, d in enumerate(difficulty):
        if i in good:
            out.append(Draft(i, True, KEEP))
        elif d <= tenth and rules.near == "drop":
            dropped["draft nearly as good as the better response"] += 1
        else:
            out.append(Draft(i, False, REVISE if rules.labels == 2 else MAJOR if d > half else MINOR))
    return out


def fault_of(draft: str, revised: str, *, finished: bool, lengths: tuple[int, int]) -> str:
    """Why a revision does not count, so that the draft stays; empty for one that does.

    Args:
      finished: whether it ended before the limit. lengths: tokens of the draft and of the revision.
    """
    words = revised.split()
    if not words:
        return "empty"
    if not finished:
        return "unfinished"
    if any(part in revised for part in (KEEP, REVISE, MINOR, MAJOR, *HEADINGS)):
        return "repeats the reviser's prompt"
    if words == draft.split():
        return "identical"
    if not 0.3 <= lengths[1] / max(lengths[0], 1) <= 3:
        return "length"
    eights = Counter(tuple(words[i : i + 8]) for i in range(len(words) - 7))
    return "loop" if eights and max(eights.values()) >= 5 else ""
