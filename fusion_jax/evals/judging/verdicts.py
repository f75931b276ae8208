"""What a judge's replies say: preferences, grades and scores, read strictly."""

from __future__ import annotations

import math
import re

from fusion_jax.asking.contract import Candidate, Failure, Outcome, Reply
from fusion_jax.evals.judging.answers import Answered
from fusion_jax.evals.judging.preferences import weighted_preference
from fusion_jax.evals.judging.turns import LEAST, MOST
from fusion_jax.evals.judging.wording import FIRST, SECOND, Style
from fusion_jax.rewards.verifiers import Verifier

GRADES = {"A>>B": 2, "A>B": 1, "A=B": 0, "B=A": 0, "B>A": -1, "B>>A": -2}
_GRADE = re.compile(r"\[\[\s*(A>>B|A>B|A=B|B=A|B>A|B>>A)\s*\]\]")
_SCORE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
UNREAD = Failure("no verdict in the reply")


def preference_of(outcome: Outcome) -> float | Failure:
    """The judge's preference for the second answer in [0, 1]: by the probabilities of its first token where they are
    told, else 0 or 1 by the reply's text."""
    if isinstance(outcome, Failure):
        return outcome
    if outcome.logprobs is not None:
        found = weighted_preference(outcome.logprobs, FIRST, SECOND)
        return UNREAD if found is None else found
    said = outcome.text.strip().strip(".*`'\"")
    return float(said == SECOND) if said in (FIRST, SECOND) else UNREAD


def grade_of(outcome: Outcome) -> int | Failure:
    """2 where the first answer is much better, ... -2 where the second one is; replies with different verdicts have
    none.

    >>> grade_of(Reply("B leaves out the units. [[A>>B]]", "stop"))
    2
    """
    if isinstance(outcome, Failure):
        return outcome
    found = {GRADES[text] for text in _GRADE.findall(outcome.text)}
    return found.pop() if len(found) == 1 else UNREAD


def score_of(outcome: Outcome) -> float | Failure:
    """The last score in double brackets, from 1 to 10.

    >>> score_of(Reply("Right, but terse. [[7]]", "stop"))
    7.0
    """
    if isinstance(outcome, Failure):
        return outcome
    found = [float(text) for text in _SCORE.findall(outcome.text)]
    return found[-1] if found and LEAST <= found[-1] <= MOST else UNREAD


def verdict_of(style: Style, outcome: Outcome) -> float | Failure:
    """What a reply says, by the style that it was asked in."""
    return {"alpaca": preference_of, "arena": grade_of, "mtbench": score_of}[style](outcome)


def as_preference(style: Style, verdict: float) -> float:
    """A pairwise verdict as the preference for the first answer in [0, 1].

    >>> as_preference("arena", 2), as_preference("arena", -1), as_preference("alpaca", 0.25)
    (1.0, 0.0, 0.75)
    """
    if style == "alpaca":
        return 1.0 - verdict
    return 0.5 if verdict == 0 else float(verdict > 0)


def rule_pair(style: Style, verify: Verifier, first: Answered, second: Answered) -> Reply:
    """How a rule that knows the right answers judges a pair, in the words of the style: by the difference d of the
    rewards, as probabilities with the odds exp(4 d), or as grades ("much better" from 0.5 on)."""
    lead = rule_reward(verify, first) - rule_reward(verify, second)
    if style == "alpaca":
        told = [Candidate(label, -math.log1p(math.exp(sign * 4 * lead))) for label, sign in ((FIRST, -1), (SECOND, 1))]
        best = max(told, key=lambda one: one.logprob)
        return Reply(best.token, "stop", tuple(told))
    size = 0 if lead == 0 else 2 if abs(lead) >= 0.5 else 1
    grade = next(text for text, value in GRADES.items() if value == (size if lead > 0 else -size))
    return Reply(f"[[{grade}]]", "stop")


def rule_score(verify: Verifier, one: Answered, turn: int) -> Reply:
    """How such a rule grades one turn: from 1 for no reward to 10."""
    reward = verify(one.said[turn], one.references[turn]) if turn < len(one.references) else 0.0
    return Reply(f"[[{LEAST + (MOST - LEAST) * reward:.2f}]]", "stop")


def rule_reward(verify: Verifier, one: Answered) -> float:
    """The mean reward of a model's answers to the turns that have a reference."""
    both = list(zip(one.said, one.references))
    return sum(verify(*pair) for pair in both) / max(len(both), 1)
