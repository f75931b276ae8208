"""Dialogues about the places of `zoo.places`, in the form of MAKER's files.

A user tells area, food or stars, and price in steps. The system asks for what is missing, in this order, names the one
place that fits or says that there is none, and answers questions for phone number and address without the name, which
only the history has. Users change their mind: then another place is right, while the history has as many values of the
first one, so that counting values (`matching.pseudo_positive`) is often wrong.

The files are read by `dialogue.turns.read_turns` and `dialogue.knowledge.read_knowledge` as those of CamRest. A record
has one field more, "about": the place that the response speaks of, by its number, or null.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fusion_jax.dialogue.meta import TagSettings, every_meta, tag
from fusion_jax.dialogue.serialise import spaced
from fusion_jax.dialogue.sets import MISSING, SYSTEM, USER, DataSet
from fusion_jax.errors import InputError
from fusion_jax.files import write_json, writing
from fusion_jax.jsonl import Record
from fusion_jax.paths import as_path
from fusion_jax.zoo import places
from fusion_jax.zoo.places import DIGITS, FIRST_NAMES, HOUSES, KINDS, LAST_NAMES, SLOTS, STREETS, VALUES, Town, Wants

DATASET: DataSet = "camrest"
OWN, MOST_TURNS, MOST_TRIES = 7, 4, 100
TOLD_FIRST = {1: 0.3, 2: 0.4, 3: 0.3}
"""Share of users who tell so many slots at first."""
IMPOSSIBLE, CHANGE, LEAVE = 0.12, 0.4, 0.08
"""Share of wishes that no place fulfils; of what follows a name or an answer, of changed minds and of goodbyes."""

OPENINGS = ("i want {what}", "i am looking for {what}", "please find me {what}")
ASKED = {
    "area": ("which area would you like ?", "in which part of town ?"),
    "food": ("what kind of food would you like ?", "which food do you prefer ?"),
    "stars": ("how many stars should it have ?", "what number of stars would you like ?"),
    "pricerange": ("what price range would you like ?", "which price do you have in mind ?"),
}
TOLD = {
    "area": ("in the {x} please", "the {x}"),
    "food": ("{x} food please", "i like {x} food"),
    "stars": ("{x} stars please", "one with {x} stars"),
    "pricerange": ("{x} please", "a place that is {x}"),
}
CHANGED = {
    "area": ("is there one in the {x} instead ?", "i would rather be in the {x}"),
    "food": ("is there one with {x} food instead ?", "i would rather have {x} food"),
    "stars": ("is there one with {x} stars instead ?", "i would rather have {x} stars"),
    "pricerange": ("is there one that is {x} instead ?", "i would rather have {x} prices"),
}
NAMED = ("{name} is {what} .", "i recommend {name} , {what} .")
NAMED_NEXT = ("then i recommend {name} .", "{name} would be right .")
NONE = ("sorry , i do not know {what} .", "i can not find {what} .")
QUESTIONS = {
    ("phone",): ("what is the phone number ?", "can i have the phone number ?"),
    ("address",): ("what is the address ?", "where is it ?"),
    ("phone", "address"): ("can i have phone number and address ?", "how do i call it and where is it ?"),
}
ANSWERS = {
    ("phone",): ("the phone number is {phone} .", "you can call {phone} ."),
    ("address",): ("the address is {address} .", "it is at {address} ."),
    ("phone", "address"): ("call {phone} , the address is {address} .", "it is at {address} , its number is {phone} ."),
}
THANKS, BYES = ("thank you , goodbye", "thanks , that is all"), ("you are welcome .", "goodbye .")


@dataclass(frozen=True)
class Bookings:
    """A town and the records of three sides; no dialogue is on two of them."""

    town: Town
    train: list[Record]
    validation: list[Record]
    test: list[Record]


@dataclass(frozen=True)
class BookingFiles:
    """Where everything lies. entities: slot -> values, for the scorer."""

    knowledge: Path
    entities: Path
    train: Path
    validation: Path
    test: Path


def bookings(seed: int, sizes: tuple[int, int, int] = (800, 100, 150), *, count: int = 80) -> Bookings:
    """A town of `count` places and so many dialogues for training, validation and test.

    Raises:
      InputError: more places or dialogues than there are.
    """
    town, seen, sides = places.town(seed, count), set[str](), list[list[Record]]()
    for side, size in enumerate(sizes):
        rng = np.random.default_rng([seed, side + 1])
        sides.append([turn for turns in _side(size, town, seen, rng) for turn in turns])
    return Bookings(town, *sides)


def _side(size: int, town: Town, seen: set[str], rng: np.random.Generator) -> Iterator[list[Record]]:
    """`size` dialogues that are not among those seen, to which they are added; they are numbered on."""
    for _ in range(size):
        for _ in range(MOST_TRIES):
            turns = dialogue(len(seen), town, rng)
            whole = f"{turns[-1]['context_used']} {turns[-1]['output_used']}"
            if whole not in seen:
                break
        else:
            problem = f"there are hardly more than {len(seen)} different dialogues about {len(town.places)} places"
            raise InputError(problem, field="sizes", cure="Ask for fewer")
        seen.add(whole)
        yield turns


def write_files(
    folder: str | os.PathLike[str], seed: int, sizes: tuple[int, int, int] = (800, 100, 150), *, count: int = 80
) -> BookingFiles:
    """`bookings` as files of a folder, each of which is there whole or not at all; other files of it stay."""
    made, target = bookings(seed, sizes, count=count), as_path(folder)
    files = BookingFiles(*(target / f"{name}.json" for name in ("all_db", "entities", "train", "val", "test")))
    contents = {
        files.knowledge: list(made.town.places), files.entities: places.entity_values(made.town.places),
        files.train: made.train, files.validation: made.validation, files.test: made.test,
    }  # fmt: skip
    with writing("the dialogues", target):
        target.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            write_json(file, content, sort=False)
    return files


@dataclass
class _Talk:
    """A dialogue as it goes. told: slots; named: places, in order; question: what is asked of the last one; answered:
    what was."""

    kind: str
    wants: Wants
    told: set[str]
    history: list[str]
    named: list[int] = field(default_factory=list)
    question: tuple[str, ...] = ()
    answered: set[str] = field(default_factory=set)
    leaving: bool = False


def dialogue(number: int, town: Town, rng: np.random.Generator) -> list[Record]:
    """The records of one dialogue, of at most `MOST_TURNS` responses."""
    talk, turns = _opened(town, rng), list[Record]()
    while True:
        response, about = _response(talk, town, rng)
        turns.append({
            "did": number, "type": talk.kind, "context_used": " ".join(talk.history),
            "output_used": f"{SYSTEM} {response}", "gold_entities": _gold(talk, response, town, about),
            "kb": [{key: _joined(value) for key, value in town.places[i].items()} for i in dict.fromkeys(talk.named)],
            "about": about,
        })  # fmt: skip
        if talk.leaving or len(turns) == MOST_TURNS:
            break
        said = _following(talk, town, rng)
        talk.history += [f"{SYSTEM} {response}", f"{USER} {said}"]
    near = town.nearest(talk.kind, talk.wants, rng)
    own = rng.permutation(list(dict.fromkeys([*talk.named, *near]))[:OWN]).tolist()
    return [{**turn, "gt_db_idx": own} for turn in turns]


def _opened(town: Town, rng: np.random.Generator) -> _Talk:
    """A user with a wish, of which the first message tells a part."""
    index = int(rng.integers(len(town.places)))
    kind, wants = town.places[index]["type"], town.wants(index)
    if rng.random() < IMPOSSIBLE:
        wants = _neighbour(town, kind, wants, rng, possible=False)
    count = rng.choice(list(TOLD_FIRST), p=list(TOLD_FIRST.values()))
    told = set(rng.choice(SLOTS[kind], count, replace=False).tolist())
    said = _one(OPENINGS, rng).format(what=_described(kind, wants, told))
    return _Talk(kind, wants, told, [f"{USER} {said}"])


def _response(talk: _Talk, town: Town, rng: np.random.Generator) -> tuple[str, int | None]:
    """What the system says, and of which place."""
    missing = _missing(talk)
    if talk.leaving:
        return _one(BYES, rng), None
    if missing:
        return _one(ASKED[missing[0]], rng), None
    what, index = _described(talk.kind, talk.wants, talk.told), town.find(talk.kind, talk.wants)
    if index is None:
        return _one(NONE, rng).format(what=what), None
    place = town.places[index]
    if talk.question:
        talk.answered |= set(talk.question)
        return _one(ANSWERS[talk.question], rng).format(**place), index
    wording = NAMED_NEXT if talk.named else NAMED
    talk.named.append(index)
    return _one(wording, rng).format(name=place["name"], what=what), index


def _following(talk: _Talk, town: Town, rng: np.random.Generator) -> str:
    """What the user says next."""
    missing = _missing(talk)
    if missing:
        talk.told.add(missing[0])
        return _one(TOLD[missing[0]], rng).format(x=talk.wants[missing[0]])
    found, chance = town.find(talk.kind, talk.wants) is not None, rng.random()
    if found and chance < LEAVE:
        talk.leaving = True
        return _one(THANKS, rng)
    questions = [asked for asked in QUESTIONS if not talk.answered & set(asked)]
    if found and chance >= LEAVE + CHANGE and questions:
        talk.question = questions[rng.integers(len(questions))]
        return _one(QUESTIONS[talk.question], rng)
    before = talk.wants
    talk.wants = _neighbour(town, talk.kind, before, rng, possible=not found or rng.random() >= IMPOSSIBLE)
    talk.question, talk.answered = (), set()
    slot = next(slot for slot in before if before[slot] != talk.wants[slot])
    return _one(CHANGED[slot], rng).format(x=talk.wants[slot])


def _neighbour(town: Town, kind: str, wants: Wants, rng: np.random.Generator, *, possible: bool) -> Wants:
    """A wish that differs in one slot, and that a place fulfils or none does; the other where there is no such one."""
    others = [{**wants, slot: value} for slot in wants for value in VALUES[slot] if value != wants[slot]]
    fitting = [other for other in others if (town.find(kind, other) is not None) == possible]
    fitting = fitting or others
    return fitting[rng.integers(len(fitting))]


def _missing(talk: _Talk) -> list[str]:
    return [slot for slot in SLOTS[talk.kind] if slot not in talk.told]


def _described(kind: str, wants: Wants, told: set[str]) -> str:
    """ "a cheap thai restaurant in the north", of the slots that are told."""
    known = {slot: wants[slot] for slot in wants if slot in told}
    stars = f"{known['stars']} star" if "stars" in known else ""
    words = " ".join(filter(None, (known.get("pricerange"), known.get("food"), stars, kind)))
    where = f" in the {known['area']}" if "area" in known else ""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}{where}"


def _gold(talk: _Talk, response: str, town: Town, about: int | None) -> list[str]:
    """The values in a response, in its order."""
    values = list(talk.wants.values()) if about is None else [v for k, v in town.places[about].items() if k != "type"]
    found = {value: f" {response} ".find(f" {value} ") for value in values}
    return [_joined(value) for value in sorted(values, key=lambda value: found[value]) if found[value] >= 0]


def _joined(value: str) -> str:
    return value.replace(" ", "_")


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def words() -> list[str]:
    """Every word that dialogues, places and the tags of the form prompt have, whatever the seed."""
    texts = ["name type address phone a an in the star", MISSING, *KINDS, *VALUES, *FIRST_NAMES, *STREETS]
    texts += [*map(str, (*HOUSES, *DIGITS)), *OPENINGS, *NAMED, *NAMED_NEXT, *NONE, *THANKS, *BYES]
    texts += [text for table in (VALUES, LAST_NAMES) for values in table.values() for text in values]
    texts += [text for table in (ASKED, TOLD, CHANGED, QUESTIONS, ANSWERS) for pair in table.values() for text in pair]
    texts += [tag(meta, TagSettings("prompt")) for meta in every_meta()]
    plain = (" ".join(part for part in text.split() if not part.startswith("{")) for text in texts)
    return sorted({word for text in plain for word in spaced(text).split()})
