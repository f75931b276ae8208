"""Dialogues about places: the same for a seed, as they claim to be, and readable as MAKER's files."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fusion_jax.dialogue import baselines, matching
from fusion_jax.dialogue.knowledge import read_knowledge
from fusion_jax.dialogue.meta import TAGS, TagSettings, every_meta, tag, tag_ids
from fusion_jax.dialogue.sets import SETS
from fusion_jax.dialogue.turns import read_turns, turns_of
from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue.entities import entities_in, read_entities
from fusion_jax.evals.dialogue.recall import naming_turns, recall_at
from fusion_jax.evals.dialogue.scoring import score
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import bookings, places
from fusion_jax.zoo.places import SLOTS, VALUES
from fusion_jax.zoo.tokenizers import word_tokenizer

SIZES = (120, 20, 40)


@pytest.fixture(scope="module")
def made():
    return bookings.bookings(3, SIZES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return bookings.write_files(tmp_path_factory.mktemp("bookings") / "town", 3, SIZES)


@pytest.fixture(scope="module")
def knowledge(files):
    return read_knowledge(files.knowledge, bookings.DATASET)


def test_a_seed_gives_the_same_and_another_one_something_else(made):
    assert made == bookings.bookings(3, SIZES)
    other = bookings.bookings(4, SIZES)
    assert made.town != other.town and made.test != other.test


def test_every_place_is_the_only_one_and_differs_from_another_in_one_slot(made):
    town = made.town
    assert Counter(place["type"] for place in town.places) == {"restaurant": 40, "hotel": 40}
    for field in ("name", "address", "phone"):
        assert len({place[field] for place in town.places}) == 80
    for number, place in enumerate(town.places):
        kind, wants = place["type"], town.wants(number)
        assert list(wants) == list(SLOTS[kind]) and town.find(kind, wants) == number
        assert list(place) == list(town.places[0])
        others = [town.wants(i) for i, one in enumerate(town.places) if one["type"] == kind and i != number]
        assert min(sum(wants[slot] != other[slot] for slot in wants) for other in others) == 1
    assert len(places.town(0, places.MOST).places) == places.MOST == 96
    with pytest.raises(InputError, match=r"'places': 97 is out of range\. Give 2 to 96"):
        places.town(0, 97)


def test_dialogues_are_what_they_say(made):
    """The place of a response fulfils what was told, its values are the gold ones, and wishes that none fulfils occur."""
    turns, town = made.train, made.town
    assert {turn["did"] for turn in turns} == set(range(SIZES[0])) and max(
        Counter(t["did"] for t in turns).values()
    ) == 4
    nothing = 0
    for turn in turns:
        response = turn["output_used"].removeprefix("<sys> ")
        gold = [value.replace("_", " ") for value in turn["gold_entities"]]
        assert all(f" {value} " in f" {response} " for value in gold)
        assert len(turn["gt_db_idx"]) == len(set(turn["gt_db_idx"])) == bookings.OWN
        if turn["about"] is None:
            nothing += bool(gold)
            continue
        place = town.places[turn["about"]]
        assert turn["about"] in turn["gt_db_idx"] and set(gold) <= set(place.values())
        told = turn["context_used"] if len(turn["kb"]) == 1 else ""
        for slot in SLOTS[place["type"]] if told else ():
            said = [value for value in VALUES[slot] if f" {value} " in f" {told} "]
            assert place[slot] in said
        assert (place["name"] in response) != bool({place["phone"], place["address"]} & set(gold))
        assert place["name"] in response or place["name"] in turn["context_used"]
    assert 0.02 < nothing / len(turns) < 0.2


def test_no_dialogue_is_on_two_sides(made):
    last = [{t["did"]: t["context_used"] + t["output_used"] for t in side}.values() for side in _sides(made)]
    assert [len(set(side)) for side in last] == list(SIZES)
    assert not set(last[0]) & set(last[2]) and not set(last[1]) & (set(last[0]) | set(last[2]))


def test_more_dialogues_than_there_are(monkeypatch):
    monkeypatch.setattr(bookings, "MOST_TURNS", 1)
    with pytest.raises(InputError, match=r"'sizes': there are hardly more than \d+ different dialogues about 2 places"):
        bookings.bookings(0, (2000, 0, 0), count=2)


def _sides(made):
    return made.train, made.validation, made.test


def test_the_files_are_read_as_those_of_the_data_set(made, files, knowledge):
    assert [dict(entity) for entity in knowledge.entities] == list(made.town.places)
    for name, records in zip(("train", "validation", "test"), _sides(made)):
        read = read_turns(getattr(files, name), knowledge)
        assert not read.dropped and not read.noted and len(read.turns) == len(records)
        for turn, record in zip(read.turns, records):
            assert turn.context == record["context_used"] and turn.response == record["output_used"]
            assert turn.own == tuple(record["gt_db_idx"])


def test_files_are_written_beside_others_or_refused(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    first = bookings.write_files(tmp_path, 3, (4, 1, 1))
    before = first.train.read_text()
    assert bookings.write_files(tmp_path, 3, (4, 1, 1)) == first and first.train.read_text() == before
    assert kept.read_text() == "mine" and len(list(tmp_path.iterdir())) == 6
    with pytest.raises(InputError, match="the dialogues cannot be written"):
        bookings.write_files(kept / "below", 3, (4, 1, 1))


def test_the_scorer_finds_the_gold_values_and_nothing_else(made, files, knowledge):
    """So that a response with all values has an F1 of 100, although values are looked up as substrings."""
    entities, turns = read_entities(files.entities, bookings.DATASET), turns_of(made.test, knowledge).turns
    for turn in turns:
        found = entities_in(turn.response.removeprefix("<sys> "), entities, bookings.DATASET)
        assert sorted(found) == sorted(turn.gold)
    scored = score([turn.response for turn in turns], turns, entities, bookings.DATASET)
    assert scored.f1 == (100, 100, 100) and scored.bleu == pytest.approx(100)


def test_counting_values_is_wrong_in_a_fifth_of_the_turns(made, knowledge):
    """Of turns about a place: nearly always right before a user changes the mind, mostly wrong when the next is named."""
    turns, values = turns_of(made.train, knowledge).turns, matching.values_in(knowledge.entities)
    right: dict[str, list[bool]] = {"first": [], "next": [], "all": []}
    for turn, record in zip(turns, made.train):
        if record["about"] is None:
            continue
        label = matching.pseudo_positive(matching.match_counts(f"{turn.context} {turn.response}", values))
        names = any(value == knowledge.names[record["about"]] for value in turn.gold)
        for kind in ("all", *(("first" if len(turn.kb) == 1 else "next",) if names else ())):
            right[kind].append(label == record["about"])
    shares = {kind: np.mean(one) for kind, one in right.items()}
    assert shares["first"] > 0.98 and shares["next"] < 0.5 and 0.72 < shares["all"] < 0.86


def test_baselines_leave_room_for_a_trained_retriever(made, knowledge):
    turns, values = turns_of(made.test, knowledge).turns, matching.values_in(knowledge.entities)
    index = baselines.bm25(knowledge.texts())
    scorers = {
        "bm25": lambda turn: baselines.bm25_scores(index, turn.context),
        "frequency": lambda turn: baselines.frequency_scores(values, turn.context),
        "oracle": lambda turn: baselines.oracle_scores(knowledge.entities, turn.gold, bookings.DATASET),
    }
    assert len(naming_turns(turns, bookings.DATASET)) > len(turns) / 3
    for name, scorer in scorers.items():
        ranked = [matching.select(scorer(turn), 7).best for turn in turns]
        first, third, seventh = (recall_at(turns, ranked, knowledge, k).share for k in (1, 3, 7))
        if name == "oracle":
            assert first == third == seventh == 100
        else:
            assert 45 < first < 70 and first + 15 < third < 100.1


def test_word_tokenizers_know_every_word(made, knowledge, tmp_path):
    marks = SETS[bookings.DATASET].marks
    t5 = word_tokenizer("t5", bookings.words(), (*marks, *TAGS))
    bert = word_tokenizer("bert", bookings.words(), marks)
    assert len(t5) == 3 + len(bookings.words()) + 4 + 11 and len(bert) == 4 + len(bookings.words()) + 4
    assert t5.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2] and bert.pad_token_id == 0
    phrases = [tag(meta, TagSettings("prompt")) for meta in every_meta()]
    for text in [t["context_used"] for t in made.test] + knowledge.texts() + phrases:
        ids = t5(text)["input_ids"]
        assert t5.unk_token_id not in ids and ids[-1] == 1 and ids.count(1) == 1
        read = bert(text)["input_ids"]
        assert bert.unk_token_id not in read and (read[0], read[-1]) == (bert.cls_token_id, bert.sep_token_id)
        assert len(read) == len(ids) + 1
    for turn in made.test:
        assert t5.decode(t5(turn["output_used"])["input_ids"][:-1]) == turn["output_used"]
    assert {len(ids) for ids in tag_ids(t5, TagSettings()).values()} == {3}
    with pytest.raises(InputError, match="cuts <old-entity> into pieces"):
        tag_ids(bert, TagSettings())
    t5.save_pretrained(tmp_path)
    text = f"<old-entity> <high-confidence> <1th-entity> {knowledge.texts()[0]}"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == t5(text)["input_ids"]


def test_texts_are_short(made, knowledge):
    """Contexts fit the retriever uncut, and passages of context, tags and entity have at most 128 tokens."""
    t5 = word_tokenizer("t5", bookings.words(), (*SETS[bookings.DATASET].marks, *TAGS))
    contexts = [len(t5(turn["context_used"])["input_ids"]) for turn in made.train]
    entities = [len(t5(text)["input_ids"]) for text in knowledge.texts()]
    assert max(contexts) <= 92 and max(entities) + 3 <= 36
    assert max(len(t5(turn["output_used"])["input_ids"]) for turn in made.train) <= 20
