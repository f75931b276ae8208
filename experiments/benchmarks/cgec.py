"""Sentences a second of both scorers of corrections, on made-up sentences of realistic lengths.

    python experiments/benchmarks/cgec.py

Sentences of 30 to 60 characters have 1 to 4 errors each, one in four none: a character or word is missing, redundant,
another one, or two neighbours have changed places. Hypotheses undo about half of them and make an edit of their own in
one of three. `far` sentences in a hundred have a hypothesis that is another sentence. ChERRANT aligns each source with
its hypothesis and two references; the M2 scorer reads the same sentences, cut into words of 1 to 3 characters, with two
annotators. One process and one thread; a row gives the median of `repeats`. Time: 20 s on one core.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from fusion_jax.evals.cgec import NOOP, Annotated, Edit, Report, score, score_m2
from fusion_jax.markdown import markdown_table
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment

Words = list[str]


@dataclass(frozen=True)
class Settings:
    """sentences: of each scorer. far: of a hundred, whose hypothesis is another sentence. repeats: of the clock."""

    sentences: int = 6000
    far: int = 3
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        bounded(self, "sentences", "repeats", least=1)
        bounded(self, "far", least=0, most=100)


@dataclass(frozen=True)
class Sentence:
    """right: its words. errors: (place of a word, words that stand there instead, how many of them are replaced)."""

    right: Words
    errors: tuple[tuple[int, Words, int], ...]

    def with_errors(self, kept: list[bool]) -> Words:
        """The words with some of the errors."""
        words = list(self.right)
        for (place, instead, count), stays in zip(reversed(self.errors), reversed(kept)):
            if stays:
                words[place : place + count] = instead
        return words


def word(rng: random.Random) -> str:
    """One to three characters; few of them are most of a text."""
    return "".join(chr(0x4E00 + int(2500 * rng.random() ** 3)) for _ in range(rng.choice((1, 1, 2, 2, 2, 3))))


def sentence(rng: random.Random) -> Sentence:
    words: Words = []
    size = rng.randint(30, 60)
    while sum(map(len, words)) < size:
        words.append("，" if len(words) % 8 == 7 else word(rng))
    places = sorted(rng.sample(range(0, len(words) - 2, 3), rng.randint(1, 4) * (rng.random() > 0.25)))
    return Sentence([*words, "。"], tuple(error(rng, words, place) for place in places))


def error(rng: random.Random, words: Words, place: int) -> tuple[int, Words, int]:
    kind = rng.choice("MRSSW")
    here, behind = words[place : place + 2]
    if kind == "M":
        return place, [], 1
    if kind == "R":
        return place, [word(rng), here], 1
    return (place, [word(rng)], 1) if kind == "S" else (place, [behind, here], 2)


def gold(made: Sentence, source: Words) -> tuple[Edit, ...]:
    """The edits of the words of the source that make it right."""
    found, shift = [], 0
    for place, instead, count in made.errors:
        start, end = place + shift, place + shift + len(instead)
        found.append(Edit(start, end, "S", " ".join(made.right[place : place + count])))
        shift += len(instead) - count
    assert len(source) == len(made.right) + shift
    return tuple(found) or (NOOP,)


def timed(name: str, call: Callable[[], Report], count: int, repeats: int) -> dict[str, str]:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        report = call()
        seconds.append(time.process_time() - start)
    median = statistics.median(seconds)
    return {
        "scorer": name, "sentences": str(count), "CPU s": f"{median:.2f}",
        "sentences a second": f"{count / median:.0f}",
        "P, R, F0.5": f"{report.precision:.4f} {report.recall:.4f} {report.f:.4f}",
    }  # fmt: skip


def main(s: Settings) -> None:
    rng = random.Random(s.seed)
    made = [sentence(rng) for _ in range(s.sentences)]
    sources = [one.with_errors([True] * len(one.errors)) for one in made]
    hypotheses, others = [], []
    for one in made:
        words = one.with_errors([rng.random() < 0.5 for _ in one.errors])
        if rng.random() < 1 / 3:
            words[rng.randrange(len(words) - 1)] = word(rng)
        hypotheses.append(rng.choice(made).right if rng.random() < s.far / 100 else words)
        others.append(one.with_errors([rng.random() < 0.3 for _ in one.errors]))
    flat = ["".join(words) for words in sources]
    texts = ["".join(words) for words in hypotheses]
    references = [["".join(one.right), "".join(other)] for one, other in zip(made, others)]
    annotated = [
        Annotated(tuple(source), (gold(one, source), gold(one, source)[:1])) for one, source in zip(made, sources)
    ]
    rows = [
        timed("ChERRANT, no_dict", lambda: score(flat, texts, references), s.sentences, s.repeats),
        timed("M2", lambda: score_m2(annotated, hypotheses), s.sentences, s.repeats),
    ]
    print(markdown_table(rows))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
