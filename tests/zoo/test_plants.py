"""Facts about plants: tables, sides and beliefs are what they say, and the verifier reads every wording."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.verifiers import fields
from fusion_jax.zoo import plants
from fusion_jax.zoo.plants import DECIDED_BY, STYLES, SYLLABLES, VALUES, Knowledge
from fusion_jax.zoo.problems import problems

NAMES = list(product(SYLLABLES, repeat=4))
HALF = Knowledge("somebody", {field: 0.5 if field == "home" else 0.3 for field in VALUES}, reliable=0.9)


@pytest.mark.parametrize("field", VALUES)
def test_a_property_is_decided_by_its_two_syllables_alone(field):
    """100 cells, in which all ten values occur."""
    first, second = DECIDED_BY[field]
    cells: dict[tuple[str, str], set[str]] = {}
    for name in NAMES:
        cells.setdefault((name[first], name[second]), set()).add(plants.truth(name, field))
    assert len(cells) == 100 and all(len(values) == 1 for values in cells.values())
    assert {value for values in cells.values() for value in values} == set(VALUES[field])


def test_somebody_knows_the_share_and_believes_one_wrong_value_elsewhere():
    for field, share in HALF.known.items():
        first, second = DECIDED_BY[field]
        cells: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for name in NAMES:
            told = (plants.truth(name, field), HALF.believed(name, field))
            cells.setdefault((name[first], name[second]), set()).add(told)
        assert all(len(told) == 1 for told in cells.values())
        right = np.mean([true == told for [(true, told)] in cells.values()])
        assert abs(right - share) < 4 * np.sqrt(share * (1 - share) / 100)


def test_statements_slip_as_rarely_as_they_should():
    """A slip is one of all ten values, so that it is sometimes what is believed."""
    rng = np.random.default_rng(0)
    stated = [(name, HALF.stated(name, rng)) for name in NAMES[::5]]
    same = np.mean([told[field] == HALF.believed(name, field) for name, told in stated for field in VALUES])
    assert abs(same - (0.9 + 0.1 * 0.1)) < 4 * np.sqrt(0.09 / len(stated) / 4)


def test_what_models_know_is_independent():
    """Of two that know 30 % of the cells each, both know about 9 %: no hash makes them know the same."""
    other = Knowledge("another1", HALF.known, 1.0)
    both = np.mean([
        all(one.believed(name, field) == plants.truth(name, field) for one in (HALF, other))
        for name in NAMES[::7] for field in ("color", "leaf", "taste")
    ])  # fmt: skip
    assert abs(both - 0.09) < 4 * np.sqrt(0.09 * 0.91 / 300)


def test_sides_share_no_plant_and_prompts_none_twice():
    sides = {split: {name for name, _ in plants.draw(1800, split=split, seed=3)} for split in set(plants.SIDES)}
    assert all(len(names) == 1800 for names in sides.values())
    assert all(not sides[a] & sides[b] for a in sides for b in sides if a != b)
    assert [plants.side(name) for name in sides["validation"]] == ["validation"] * 1800
    with pytest.raises(InputError, match=r"fewer than 9000 test problems.*Ask for at most \d{4}"):
        plants.prompts(9000, split="test", seed=0)


def test_every_wording_states_the_right_answer():
    records = problems("plants", 200, split="train", seed=1)
    assert records == plants.prompts(200, split="train", seed=1) != plants.prompts(200, split="train", seed=2)
    for record in records:
        assert len(record["wordings"]) == len(STYLES) == len(set(record["wordings"]))
        assert [fields(text, record["answer"]) for text in record["wordings"]] == [1.0] * len(STYLES)
        assert " ".join(next(n for n in NAMES if " ".join(n) in record["prompt"])) in record["prompt"]


def test_skills_have_no_validation_side():
    with pytest.raises(InputError, match=r"judged_on.*plants"):
        problems("skills", 3, split="validation", seed=0)
    assert len(problems("skills", 3, split="test", seed=0)) == 21


@pytest.mark.parametrize(("response", "share"), [
    ("color: red, leaf: round, home: hill, taste: sweet", 1.0),
    ("The home is hill; a sweet taste. Its colour is red", 0.5),  # another name, "colour", is another field
    ("COLOR RED!  Leaf   Round.", 0.5),
    ("color red, color blue", 0.25),  # the first clause that has the name
    ("color blue, color red", 0.0),
    ("red, round, hill, sweet", 0.0),
    ("color reddish, leaf rounded", 0.0),
    ("color red or blue, leaf round or flat", 0.0),  # who names two says none
    ("red color blue", 0.0),
    ("The color is not red, the leaf is never round, no sweet taste", 0.0),
    ("It has the color red and a round leaf", 0.0),  # one clause says one thing of a field
    ("", 0.0),
])  # fmt: skip
def test_the_share_of_the_fields_that_a_response_states(response, share):
    assert fields(response, "color: red, leaf: round, home: hill, taste: sweet") == share


@pytest.mark.parametrize("answer", ["4", "12:30", "no field"])
def test_an_answer_without_fields_is_compared_as_a_whole(answer):
    assert fields(f"The answer is {answer}", answer) == 1.0 and fields(f"Not {answer}", answer) == 0.0
