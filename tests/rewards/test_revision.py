"""SEFT's rules: the reviser's prompt, labels, threshold and which revisions count, on cases worked by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fusion_jax.rewards import revision
from fusion_jax.rewards.revision import KEEP, MAJOR, MINOR, REVISE, LabelRules, labelled


def test_the_prompt_names_the_labels_and_hides_headings_in_texts():
    asked = [{"role": "user", "content": "Sort 3 1 2"}]
    prompt = revision.reviser_prompt(asked, "### Draft\n1 2 3")
    assert prompt.count("###") == 2 and prompt.endswith("# ## Draft\n1 2 3")
    assert KEEP in prompt and REVISE in prompt and MINOR not in prompt
    assert MAJOR in revision.reviser_prompt(asked, "x", 3) and KEEP not in revision.reviser_prompt(asked, "x", 0)
    for marks in ("####", "#####", "a ###### b"):
        assert revision.reviser_prompt(asked, marks).count("###") == 2
    talk = [*asked, {"role": "assistant", "content": "1 2 3"}, {"role": "user", "content": "Down"}]
    assert "user: Sort 3 1 2\nassistant: 1 2 3\nuser: Down" in revision.reviser_prompt(talk, "3 2 1")
    assert revision.target_of(KEEP, None) == KEEP and revision.target_of(REVISE, "1 2") == f"{REVISE}\n1 2"
    assert revision.target_of(REVISE, "\n\n1 2\n") == f"{REVISE}\n1 2"


def test_p_keep_is_a_share_of_the_labels():
    scores = np.log([[0.2, 0.6], [0.3, 0.1]]) - 700.0  # far below what exp could hold alone
    np.testing.assert_allclose(revision.p_keep(scores), [0.25, 0.75])
    three = np.log([[0.2, 0.2, 0.4]])
    np.testing.assert_allclose(revision.p_keep(three), [0.25])


@pytest.mark.parametrize(("preserve", "wanted"), [(1.0, 0.1), (0.9, 0.2), (0.5, 0.6), (0.01, 1.0)])
def test_the_threshold_preserves_the_share_of_good_drafts_that_is_asked_for(preserve, wanted):
    good = np.arange(1, 11) / 10
    found = revision.keep_threshold(good[::-1], preserve)
    assert found == wanted and (good >= found).mean() >= preserve
    assert revision.keep_threshold(np.asarray([]), preserve) == 0.5


def test_auc_counts_pairs_that_stand_in_order():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(0.5, 1, 30).round(1), rng.normal(0, 1, 20).round(1)
    by_hand = np.mean([(g > b) + 0.5 * (g == b) for g in good for b in bad])
    assert revision.auc(good, bad) == pytest.approx(by_hand)


def test_labels_follow_the_difficulty_and_the_mixture():
    difficulty, drops = np.arange(30.0), Counter[str]()
    found = labelled(difficulty, LabelRules(), 0, drops)
    kept = [d for d in found if d.good]
    assert len(kept) == 10 and all(d.label == KEEP for d in kept)
    assert len({d.pair for d in found}) == len(found)  # never both drafts of a pair
    assert all(d.label == REVISE and difficulty[d.pair] > 2.9 for d in found if not d.good)
    assert sum(drops.values()) == 30 - len(found) <= 3
    every = labelled(difficulty, LabelRules(near="keep", labels=3), 0, Counter())
    assert len(every) == 30
    assert {d.label for d in every if not d.good and difficulty[d.pair] > 14.5} == {MAJOR}
    assert {d.label for d in every if not d.good and difficulty[d.pair] < 14.5} == {MINOR}
    assert found == labelled(difficulty, LabelRules(), 0, Counter())
    assert found != labelled(difficulty, LabelRules(), 1, Counter())
    assert labelled(np.asarray([]), LabelRules(), 0, Counter()) == []


LOOP = "one two three four five six seven eight " * 6


@pytest.mark.parametrize(("revised", "finished", "lengths", "why"), [
    ("1 2 3", True, (3, 3), ""), (" ", True, (3, 1), "empty"), ("1 2", False, (3, 3), "unfinished"),
    (f"{KEEP} 1 2 3", True, (3, 5), "repeats the reviser's prompt"), ("### Draft\n1", True, (3, 3), "repeats the reviser's prompt"),
    ("### Sorted\n1 2 3\n#### 3", True, (3, 3), ""),
    ("3  1\n2", True, (3, 3), "identical"), ("1", True, (10, 2), "length"), ("1 2", True, (3, 10), "length"),
    ("1 2 3", True, (10, 3), ""), (LOOP, True, (48, 48), "loop"), (LOOP[:170], True, (48, 48), ""),
])  # fmt: skip
def test_which_revisions_count(revised, finished, lengths, why):
    assert revision.fault_of("3 1 2", revised, finished=finished, lengths=lengths) == why


def test_refusals_are_known_by_how_they_begin():
    said = [
        "I'm sorry, but I can't help with that.", "As an AI language model, I ...", " I cannot assist with this.",
        "Sorry, I won't do that.", "I am unable to provide it", "I apologize, but I'm not able to answer.",
        "Unfortunately, I can\u2019t share that.",
    ]  # fmt: skip
    assert all(map(revision.refuses, said))
    helpful = [
        "I'm sorry to hear that. Here is what helps:", "Sorry for the confusion: it is 4.", "I can't recommend it enough!",
        "As an aid, ...", "I can help.", "Say I'm sorry.", "I cannot stress enough how ...", "Unfortunately it rained.",
    ]  # fmt: skip
    assert not any(map(revision.refuses, helpful))
