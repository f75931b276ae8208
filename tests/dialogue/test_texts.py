"""Tags under every switch, cuts, selection and baselines at their edges, prompts of chat models."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from fusion_jax.dialogue import baselines, knowledge, matching, meta, serialise
from fusion_jax.dialogue import chat_prompt as prompts
from fusion_jax.dialogue.chat_prompt import INSTRUCTION, chat_prompt, reply_of
from fusion_jax.dialogue.meta import Meta, TagSettings, decorated, every_meta, metas, tag
from fusion_jax.dialogue.serialise import beginning, newest, padded, response_ids
from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue import clean, scoring
from fusion_jax.evals.dialogue import entities as entity_rules

PLACES = [
    {"name": "curry house", "area": "north", "food": "indian"},
    {"name": "river inn", "area": "west", "food": "indian"},
    {"name": "green leaf", "area": "north", "food": "dontknow"},
]
NONE = {"order": False, "confidence": False, "cooccurrence": False}


@pytest.mark.parametrize(
    "form, kinds, wanted",
    [
        ("prefix", ["order"], "<1th-entity>"),
        ("prefix", ["order", "cooccurrence"], "<old-entity> <1th-entity>"),
        ("prompt", ["cooccurrence"], "existed in history:"),
        ("prompt", ["order", "cooccurrence"], "The top-1 recalled: existed in history:"),
        ("chat", ["cooccurrence"], "This entity has appeared before."),
        ("chat", ["order"], "This entity is top-1 important."),
        ("chat", ["confidence"], "It has medium possibility."),
        ("none", ["order", "confidence", "cooccurrence"], ""),
    ],
)
def test_kinds_are_left_out(form, kinds, wanted):
    settings = TagSettings(form, **{kind: kind in kinds for kind in NONE})
    assert tag(Meta(1, "mid", True), settings) == wanted
    assert decorated(["<database>"], [Meta(1, "mid", True)], settings) == [f"{wanted} <database>".strip()]


@pytest.mark.parametrize("form", ["prefix", "prompt", "chat"])
def test_without_any_kind_nothing_stands_before_an_entity(form):
    assert {tag(meta, TagSettings(form, **NONE)) for meta in every_meta()} == {""}
    assert len({tag(meta, TagSettings(form)) for meta in every_meta()}) == 36


def test_unknown_forms_are_refused():
    with pytest.raises(InputError, match="'form': 'tags' is none"):
        tag(Meta(1, "low", False), TagSettings("tags"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'prompt' is not told to chat models"):
        chat_prompt("<user> hi", [], "prompt")


def test_entities_without_a_name_are_new_and_negative_ones_tell_nothing():
    context = "<user> the river_inn or dontknow"
    found = metas([0.9, 0.8, 0.8], ["river inn", None, "dontknow"], context)
    assert found == [Meta(1, "high", True), Meta(2, "high", False), Meta(3, "high", False)]
    assert metas([0.9, 0.9], ["river inn"] * 2, context, negative=True)[-1] == Meta(0, "low", False)
    assert metas([], [], context, negative=True) == []
    with pytest.raises(InputError, match="there are 1 of them for 2 names"):
        metas([0.9], ["a", "b"], context)


def test_cuts():
    assert newest([1, 2, 3], 1, keep_first=True) == [1] and newest([1, 2, 3], 1) == [3]
    assert beginning([1, 2, 3], 2) == [1, 2] and newest([], 2) == []
    assert response_ids([], 1, 9) == [9] and response_ids([5], 1, 9) == [5]
    ids, mask = padded([[], [4, 5]], 2, pad=7)
    assert ids.tolist() == [[7, 7], [4, 5]] and mask.tolist() == [[False, False], [True, True]]
    with pytest.raises(InputError, match="record 2, field 'rows': has 3 tokens, 2 at most"):
        padded([[1], [1, 2, 3]], 2)
    with pytest.raises(InputError, match="'most': 0 is out of range"):
        newest([1], 0)


def test_equal_scores_go_by_place_and_bad_ones_are_refused():
    assert matching.select([0.5] * 4, 2) == ((0, 1), 2)
    assert matching.select([-np.inf, 0.1, -np.inf], 1) == ((1,), 0)
    with pytest.raises(InputError, match="score 1 is not a number"):
        matching.select([0.1, np.nan], 1)
    with pytest.raises(InputError, match="'k': 0 is out of range"):
        matching.select([0.1], 0)


def test_a_value_that_two_attributes_have_counts_twice():
    values = matching.values_in([{"name": "north", "area": "North", "food": "dontknow", "street": ""}])
    assert matching.match_counts("<user> in the north , dontknow", values).tolist() == [2]
    assert matching.match_counts("<user> north", matching.values_in([])).shape == (0,)


def test_bm25_has_the_weights_of_lucene():
    """Scores of bm25s 0.3.16 (method "lucene", k1 1.5, b 0.75) for these words; an unknown word counts nothing."""
    index = baselines.bm25(["a b c", "a d", "b b e f"])
    found = baselines.bm25_scores(index, "<user> B b <sys> zzz a <sep_attributes>")
    np.testing.assert_allclose(found, [0.56400436, 0.22117817, 0.48516503], rtol=1e-6)
    assert baselines.bm25_scores(index, "").tolist() == [0, 0, 0]
    assert baselines.bm25_scores(baselines.bm25([]), "a").shape == (0,)


def test_frequency_reads_the_context_alone():
    values = matching.values_in(PLACES)
    assert baselines.frequency_scores(values, "<user> indian food in the north").tolist() == [2, 1, 1]


def test_the_oracle_takes_the_named_entity_and_then_what_is_lacking():
    def ranked(*gold: str) -> tuple[int, ...]:
        scores = baselines.oracle_scores(PLACES, gold, "camrest")
        return matching.select(scores, int((scores > 0).sum()) or 1).best

    assert ranked("green leaf", "indian", "west") == (2, 1)
    assert ranked("north", "indian") == (0,) and ranked("west") == (1,)
    assert baselines.oracle_scores(PLACES, ("taxi",), "camrest").tolist() == [0, 0, 0]
    assert baselines.oracle_scores([], ("north",), "camrest").shape == (0,)
    twice = [PLACES[0], PLACES[0]]
    assert baselines.oracle_scores(twice, ("curry house", "north"), "camrest").tolist() == [2, 0]


def test_prompts_of_chat_models():
    entities = decorated(["<database> name river inn"], [Meta(1, "high", False)], TagSettings("chat"))
    told = chat_prompt("<user> hi", entities, "chat")
    assert told.startswith(f"{INSTRUCTION} Sentences stand before each entity.")
    assert told.endswith(f"\n\nEntities:\n{entities[0]}\n\nDialogue:\n<user> hi\n\nResponse:")
    plain = chat_prompt("<user> hi", [], "none")
    assert plain.startswith(f"{INSTRUCTION}\n\nEntities:\n(none)\n") and "<old-entity>" in chat_prompt(
        "x", [], "prefix"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "It is cheap.",
        '"It is cheap."',
        "system: It is cheap.",
        '\n  System: "It is cheap."\nMore?',
        '"SYSTEM: It is cheap."',
    ],
)
def test_replies(answer):
    assert reply_of(answer) == "It is cheap." and reply_of("\n \n") == ""


@pytest.mark.parametrize(
    "module", [clean, entity_rules, knowledge, matching, meta, prompts, scoring, serialise], ids=str
)
def test_examples_give_what_they_say(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
