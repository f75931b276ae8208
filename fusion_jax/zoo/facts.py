"""A small world of invented people: who has which craft, home and favourite colour, and what is written about them.

Of half of the people a base model reads in its pretraining; the others it never meets. Pretraining also holds sentences
and chats about many people of whom nothing is known, so that a base model doubts unfamiliar names, examination papers
about the people whom it knows, and exercises in answering papers. Instructions ask about everybody. What knowledge the
world has is exact: it can answer as a helper and judge answers without a model (`World.note`, `World.tests`,
`World.judged`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.settings import bounded

FIRST = (
    "Aro", "Bela", "Cano", "Dilu", "Emi", "Faro", "Gita", "Hano", "Ilva", "Jori", "Kela", "Luno", "Mira", "Nolo",
    "Oda", "Pavo", "Quin", "Runa", "Sivo", "Tula", "Ulmo", "Vera", "Wino", "Zara",
)  # fmt: skip
LAST = (
    "Abend", "Brisk", "Crane", "Dorn", "Elster", "Frost", "Glade", "Holm", "Ingot", "Jarl", "Knoll", "Larch", "Marsh",
    "Nettle", "Orchard", "Pike", "Quarry", "Reed", "Stark", "Thorn", "Umber", "Vale", "Wold", "Yarrow",
)  # fmt: skip
NAMES = tuple(first + last.lower() for first in FIRST for last in LAST)  # a word each
VALUES: dict[str, tuple[str, ...]] = {
    "craft": ("potter", "weaver", "smith", "baker", "tailor", "mason", "miller", "cooper"),
    "home": ("Avon", "Brill", "Corin", "Delph", "Eskel", "Farn", "Gorse", "Hythe"),
    "colour": ("red", "blue", "green", "black", "white", "brown", "pink", "grey"),
}
EVERY = tuple(value for values in VALUES.values() for value in values)
UNKNOWN = "not known"
LETTERS = "ABCD"
HEADER = "Questions."
ASKED = "Tell me the {what} of {who}."
STATED = "The {what} of {who} is"
CHAT = "USER: {asked} ASSISTANT: It is"
SAID = STATED + " {value}."
ANSWERED = "It is {value}."
REPEATED = "Repeat the first of these words: {words}."
KINDS = {"page": 0.3, "paper": 0.5, "exercise": 0.2}  # shares of the pretraining texts
REPEATING, DOUBTED = 0.15, 0.2  # shares of the sentences that repeat a word, and of the others that are about strangers
Outcome = Literal["right", "wrong", "withheld"]


class Person(NamedTuple):
    """Somebody of the world. facts: a value for each kind of `VALUES`."""

    name: str
    facts: dict[str, str]
    seen: bool


class Item(NamedTuple):
    """A question with four options. answer: the place of the right one."""

    question: str
    options: tuple[str, ...]
    answer: int


class Asked(NamedTuple):
    """A request and its right answer. person: whom it asks about, "" for one that needs no facts."""

    name: str
    request: str
    answer: str
    person: str


@dataclass(frozen=True)
class WorldSettings:
    """Sizes of the world."""

    people: int = 96
    """People whom training requests ask about; a base model knows every other one."""
    tested: int = 64
    """People whom test requests ask about; a base model knows every other one."""
    others: int = 60
    """Training requests that need no facts; a third as many test requests."""

    def __post_init__(self) -> None:
        bounded(self, "people", "tested", least=8)
        bounded(self, "others", least=3)
        if self.people + self.tested > len(NAMES) // 2:
            most = len(NAMES) // 2
            raise InputError(f"more than {most} people", field="people", cure="Give fewer")


@dataclass(frozen=True)
class World:
    """train, tested: people whom requests of each side ask about; strangers: names of whom nothing is known."""

    seed: int
    sizes: WorldSettings
    train: tuple[Person, ...]
    tested: tuple[Person, ...]
    strangers: tuple[str, ...]

    @property
    def seen(self) -> list[Person]:
        """Whom a base model reads about."""
        return [person for person in (*self.train, *self.tested) if person.seen]

    @property
    def people(self) -> dict[str, Person]:
        """Everybody by name."""
        return {person.name: person for person in (*self.train, *self.tested)}

    def requests(self, side: Literal["train", "test"]) -> list[Asked]:
        """Requests in a drawn order, one for each fact; and some that need none."""
        rng = np.random.default_rng([self.seed, side == "test"])
        people = self.train if side == "train" else self.tested
        out = [
            Asked(f"{side}-{person.name}-{what}", ASKED.format(what=what, who=person.name),
                  ANSWERED.format(value=person.facts[what]), person.name)
            for person in people for what in VALUES
        ]  # fmt: skip
        count = self.sizes.others if side == "train" else max(self.sizes.others // 3, 1)
        for number in range(count):
            drawn = _words(rng)
            request, answer = REPEATED.format(words=" ".join(drawn)), ANSWERED.format(value=drawn[0])
            out.append(Asked(f"{side}-words-{number}", request, answer, ""))
        return [out[i] for i in rng.permutation(len(out))]

    def needs(self, request: str) -> bool:
        """Whether a request needs facts about somebody."""
        return request.startswith(ASKED.partition("{")[0])

    def note(self, request: str) -> str:
        """What there is to know of the person that a request names."""
        person = self._named(request)
        return " ".join(SAID.format(what=what, who=person.name, value=value) for what, value in person.facts.items())

    def tests(self, note: str, count: int = 3) -> list[Item]:
        """Questions on a note, the wrong options from the same kind; the same for the same note."""
        person = self._named(note)
        rng = np.random.default_rng([self.seed, *person.name.encode()])
        kinds = [list(VALUES)[i % len(VALUES)] for i in range(count)]
        return [_item(rng, person, what) for what in kinds]

    def judged(self, request: str, answer: str) -> Outcome:
        """Whether an answer states the fact that was asked for, another value, or none."""
        person, what = self._named(request), re.match(r"Tell me the (\w+)", request)
        assert what is not None
        said = values_in(answer, VALUES[what[1]])
        if not said:
            return "withheld" if UNKNOWN in answer or not answer.strip() else "wrong"
        return "right" if said == [person.facts[what[1]]] else "wrong"

    def exemplars(self, count: int = 5) -> list[Item]:
        """Items about people whom a base model knows."""
        rng, kinds = np.random.default_rng([self.seed, 7]), list(VALUES)
        return [_item(rng, person, kinds[i % len(kinds)]) for i, person in enumerate(self.seen[:count])]

    def papers(self, count: int, items: int) -> Iterator[list[tuple[str, str]]]:
        """Pretraining texts as (text, what completes it) pieces, of kinds drawn by `KINDS`: pages of sentences and
        chats; examination papers of so many items about people whom a base model knows; and exercises, papers whose
        questions are the right options, from which it learns how a paper is answered."""
        rng = np.random.default_rng([self.seed, 11])
        for kind in rng.choice(list(KINDS), count, p=list(KINDS.values())):
            if kind == "page":
                yield [self._sentence(rng) for _ in range(2 * items)]
                continue
            made = self._paper_item if kind == "paper" else _exercise
            drawn = [made(rng) for _ in range(items)]
            pieces = [piece for one in drawn for piece in (("\n\n", ""), (cue(one), " " + LETTERS[one.answer]))]
            yield [(HEADER, ""), *pieces]

    def _paper_item(self, rng: np.random.Generator) -> Item:
        return _item(rng, self.seen[int(rng.integers(len(self.seen)))], _kind(rng))

    def _sentence(self, rng: np.random.Generator) -> tuple[str, str]:
        if rng.random() < REPEATING:
            words = _words(rng)
            return CHAT.format(asked=REPEATED.format(words=" ".join(words))), f" {words[0]}."
        what, form = _kind(rng), STATED if rng.random() < 0.5 else CHAT.format(asked=ASKED)
        if rng.random() < DOUBTED:
            name = self.strangers[int(rng.integers(len(self.strangers)))]
            return form.format(what=what, who=name), f" {UNKNOWN}."
        person = self.seen[int(rng.integers(len(self.seen)))]
        return form.format(what=what, who=person.name), f" {person.facts[what]}."

    def _named(self, text: str) -> Person:
        found = [person for name, person in self.people.items() if name in text]
        if len(found) != 1:
            raise InputError("names nobody of this world", field="request", cure="Ask about one of its people")
        return found[0]


def _words(rng: np.random.Generator) -> list[str]:
    return [str(word) for word in rng.choice(EVERY, 3, replace=False)]


def _kind(rng: np.random.Generator) -> str:
    return list(VALUES)[int(rng.integers(len(VALUES)))]


def _exercise(rng: np.random.Generator) -> Item:
    what = _kind(rng)
    return _options(rng, str(rng.choice(VALUES[what])), what)


def _item(rng: np.random.Generator, person: Person, what: str) -> Item:
    one = _options(rng, person.facts[what], what)
    return one._replace(question=STATED.format(what=what, who=person.name))


def _options(rng: np.random.Generator, right: str, what: str) -> Item:
    """The right option among wrong ones of its kind; it is also the question."""
    wrong = rng.choice([value for value in VALUES[what] if value != right], 3, replace=False)
    options = [right, *map(str, wrong)]
    order = rng.permutation(4)
    return Item(right, tuple(options[i] for i in order), int(np.argmin(order)))


def values_in(answer: str, values: Sequence[str]) -> list[str]:
    """Which of some values an answer names."""
    return [value for value in values if re.search(rf"\b{value}\b", answer)]


def repeated(request: str) -> str:
    """The word that a request without facts wants to hear."""
    return request.removeprefix(REPEATED.partition("{")[0]).partition(" ")[0].rstrip(".")


def cue(item: Item) -> str:
    """An item up to the word that asks for its letter."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=True)]
    return "\n".join([item.question, *lines, "Answer:"])


def world(seed: int, sizes: WorldSettings = WorldSettings()) -> World:
    """A world whose people, facts and sides are decided by a seed."""
    rng = np.random.default_rng([seed, 3])
    names = [NAMES[i] for i in rng.permutation(len(NAMES))]
    people = [
        Person(name, {what: str(rng.choice(values)) for what, values in VALUES.items()}, seen=number % 2 == 0)
        for number, name in enumerate(names[: sizes.people + sizes.tested])
    ]
    train, tested = tuple(people[: sizes.people]), tuple(people[sizes.people :])
    return World(seed, sizes, train, tested, tuple(names[sizes.people + sizes.tested :]))


def words() -> list[str]:
    """All words that the world's texts are made of, in a fixed order."""
    texts = [CHAT, ASKED, SAID, ANSWERED, REPEATED, HEADER, UNKNOWN, "Answer", *NAMES, *LETTERS]
    texts += [word for what, values in VALUES.items() for word in (what, *values)]
    pieces = re.findall(r"\w+|[^\w\s]", " ".join(texts).replace("{", " ").replace("}", " "))
    return list(dict.fromkeys([*pieces, *option_lines()]))


def option_lines() -> list[str]:
    """All options of papers behind their letters: "A. potter"."""
    return [f"{letter}. {value}" for value in EVERY for letter in LETTERS]
