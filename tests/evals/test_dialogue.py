"""Scores of dialogues against the golden file: entities, counts and recalls exactly, BLEU to 0.01."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusion_jax.dialogue.knowledge import entity_of, knowledge_of, plain
from fusion_jax.dialogue.matching import select
from fusion_jax.dialogue.turns import Place, Turn
from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue import bootstrap
from fusion_jax.evals.dialogue.clean import prediction_text, reference_text
from fusion_jax.evals.dialogue.entities import entities_in, entity_list, read_entities
from fusion_jax.evals.dialogue.recall import naming_turns, recall_at
from fusion_jax.evals.dialogue.scoring import bleu_of, ngram_counts, score
from tests.dialogue.golden import section

LISTS = {name: entity_list(values, name) for name, values in section("entity_lists").items()}


def name_of(case):
    return case["name"]


@pytest.mark.parametrize("case", section("entity_f1"), ids=name_of)
def test_entities_and_their_f1(case):
    dataset, entities = case["dataset"], LISTS[case["dataset"]]
    turns = [Turn(number, "", "", turn["reference"]) for number, turn in enumerate(case["turns"])]
    for given, turn in zip(case["turns"], turns):
        assert turn.calls_api == given.get("skipped", False)
        if not turn.calls_api:
            texts = prediction_text(given["prediction"]), reference_text(given["reference"])
            assert texts == (given["prediction_text"], given["reference_text"])
            found = [sorted(entities_in(text, entities, dataset)) for text in texts]
            assert found == [given["prediction_entities"], given["reference_entities"]]
    scored = score([turn["prediction"] for turn in case["turns"]], turns, entities, dataset)
    assert scored.entities.sum(0).tolist() == [case["tp"], case["fp"], case["fn"]]
    assert scored.f1 == pytest.approx((case["precision"], case["recall"], case["f1"]), abs=1e-4)
    assert scored.turns.tolist() == [i for i, turn in enumerate(case["turns"]) if not turn.get("skipped")]


@pytest.mark.parametrize("case", section("bleu"), ids=name_of)
def test_bleu(case):
    hypotheses = [prediction_text(one) for one, _ in case["pairs"]]
    references = [reference_text(other) for _, other in case["pairs"]]
    assert (hypotheses, references) == (case["prediction_texts"], case["reference_texts"])
    found = bleu_of(ngram_counts(hypotheses, references).sum(0))
    assert found == pytest.approx(case["multi_bleu_lc"], abs=0.01)
    assert found == pytest.approx(case["sacrebleu_none_unsmoothed_lc"], abs=1e-4)


@pytest.mark.parametrize("case", section("recall_at_k"), ids=name_of)
def test_recall(case):
    knowledge = knowledge_of(case["db"], case["dataset"])
    turns = [
        Turn(
            t["did"], "", "<user> x", t["output_used"], tuple(map(plain, t["gold_entities"])),
            tuple(entity_of(entity, Place(None, 1)) for entity in t["kb"]),
        )
        for t in case["turns"]
    ]  # fmt: skip
    assert naming_turns(turns, case["dataset"]) == case["counted_turns"]
    ranked = [select(scores, len(case["db"])).best for scores in case["scores"]]
    for k in case["ks"]:
        found = recall_at(turns, ranked, knowledge, k)
        assert found.turns.tolist() == case["counted_turns"]
        assert found.share == pytest.approx(case["recall"][str(k)], abs=1e-5)


def test_names_of_calls_are_seen_and_not_scored():
    """A name that a call of the API brings up is no longer new in the response that follows."""
    kb = ({"name": "river inn"},)
    turns = [Turn(0, "", "<user> x", f"<{who}> y", ("river inn",), kb) for who in ("sys-api", "sys")]
    assert naming_turns(turns, "multiwoz") == [] and naming_turns(turns[1:], "multiwoz") == [0]


def test_recall_keeps_what_a_turn_brings_to_itself_and_may_be_undefined():
    knowledge = knowledge_of([{"name": "river inn"}], "multiwoz")
    brings = Turn(0, "", "<user> x", "<sys> y", ("river inn", "ab1"), ({"name": "river inn", "ref": "ab1"},))
    lacks = Turn(1, "", "<user> x", "<sys> y", ("river inn", "ab1"), ({"name": "river inn"},))
    found = recall_at([brings, lacks], [[0], [0]], knowledge, 1)
    assert found.hits.tolist() == [True, False] and found.counts.tolist() == [[1, 1], [0, 1]]
    assert recall_at([Turn(0, "", "<user> x", "<sys> y")], [[0]], knowledge, 1).share is None
    assert recall_at([brings], [[]], knowledge, 3).share == 0
    with pytest.raises(InputError, match="there are 1 rows for 2 turns"):
        recall_at([brings, lacks], [[0]], knowledge, 1)
    with pytest.raises(InputError, match="'k': 0"):
        recall_at([brings], [[0]], knowledge, 0)


def test_lists_of_entities():
    assert LISTS["multiwoz"][0] == "cambridge towninfo centre" and "choice-many" in LISTS["multiwoz"]
    assert entity_list({"a": ["BB", "aa", "ccc"], "b": ["bb", 4]}, "camrest") == ("ccc", "aa", "bb", "4")
    assert {"2 miles", "50f", "12 oak street", " hr ", "20th"} <= set(LISTS["smd"]) and "hr" not in LISTS["smd"]


@pytest.mark.parametrize(
    "content, told",
    [
        ({"area": "north"}, "field 'area': is 'north', not a list of values"),
        ({"area": ["north", ""]}, r"field 'area\[1\]': is '', not a text"),
        ({"poi": [{"poi": "blue cafe"}]}, r"field 'poi\[0\]': is dict of 1, not a text"),
        (["north"], "is not a JSON object"),
    ],
)
def test_files_of_entities_are_refused(tmp_path, content, told):
    path = tmp_path / "entities.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"entities\.json.*{told}"):
        read_entities(path, "smd")


def test_scores_need_a_prediction_for_each_turn():
    turns = [Turn(0, "", "<user> x", "<sys> curry house")]
    with pytest.raises(InputError, match="there are 2 for 1 turns"):
        score(["a", "b"], turns, LISTS["camrest"], "camrest")
    with pytest.raises(InputError, match="'predictions'"):
        score("a", turns, LISTS["camrest"], "camrest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="none is left to be scored"):
        score(["a"], [Turn(0, "", "<user> x", "<sys-api> y")], LISTS["multiwoz"], "multiwoz")


def many(rng: np.random.Generator, right: float) -> list[str]:
    return [
        "<sys> curry house is cheap ." if rng.random() < right else "<sys> la piazza is moderate ." for _ in range(300)
    ]


def test_dialogues_are_resampled_in_pairs():
    rng = np.random.default_rng(0)
    turns = [Turn(number // 3, "", "<user> x", "<sys> curry house is cheap .") for number in range(300)]
    better, worse = (score(many(rng, share), turns, LISTS["camrest"], "camrest") for share in (0.8, 0.6))
    found = bootstrap.f1_difference(better, worse, seed=0)
    assert (found.first, found.second) == (better.f1.f1, worse.f1.f1)
    assert found.difference == pytest.approx(better.f1.f1 - worse.f1.f1)
    assert (
        0 < found.low < found.difference < found.high
        and found.p_value < 0.01
        and found == bootstrap.f1_difference(better, worse, seed=0)
    )
    by_turns = np.std(better.entities[:, 0] / 2 - worse.entities[:, 0] / 2) / np.sqrt(300)
    assert (found.high - found.low) / 200 == pytest.approx(1.96 * by_turns, rel=0.25)  # turns are independent here
    same = bootstrap.bleu_difference(better, better, seed=1, resamples=99)
    assert same.difference == same.low == same.high == 0 and same.p_value == 1
    turned = bootstrap.bleu_difference(worse, better, seed=1, resamples=199)
    assert turned.high < 0 and turned.first == pytest.approx(worse.bleu)


def test_dialogues_hold_together():
    """Turns that always agree within a dialogue have a wider interval than as many alone."""
    rng = np.random.default_rng(1)
    hits = np.repeat(rng.random(60) < 0.7, 5)[:, None].astype(int)
    counts, none = np.concatenate([hits, np.ones_like(hits)], 1), np.tile([0, 1], (300, 1))

    def width(dialogues: np.ndarray) -> float:
        found = bootstrap.compare(counts, none, dialogues, dialogues, lambda c: c[0] / c[1], seed=0)
        return found.high - found.low

    assert width(np.repeat(np.arange(60), 5)) == pytest.approx(np.sqrt(5) * width(np.arange(300)), rel=0.2)


def test_recalls_are_compared():
    knowledge = knowledge_of([{"name": "river inn"}, {"name": "green leaf"}], "camrest")
    turns = [Turn(i, "", "<user> x", "<sys> y", ("river inn",), ({"name": "river inn"},)) for i in range(40)]
    right = recall_at(turns, [[0, 1]] * 40, knowledge, 1)
    half = recall_at(turns, [[i % 2, 1 - i % 2] for i in range(40)], knowledge, 1)
    found = bootstrap.recall_difference(right, half, seed=0, resamples=400)
    assert (found.first, found.second, found.difference) == (100, 50, 50) and 30 < found.low < found.high < 70


def test_only_scores_of_the_same_dialogues_are_compared():
    counts = np.ones((4, 2))
    with pytest.raises(InputError, match="different turns"):
        bootstrap.compare(counts, counts, np.arange(4), np.arange(4)[::-1], lambda c: c[0], seed=0)
    with pytest.raises(InputError, match="1 dialogue cannot be resampled"):
        bootstrap.compare(counts, counts, np.zeros(4), np.zeros(4), lambda c: c[0], seed=0)
