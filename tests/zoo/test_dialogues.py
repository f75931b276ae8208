"""Dialogues in which a draft is made better, and the zoo's flawed answers."""

from __future__ import annotations

import numpy as np

from fusion_jax.rewards.verifiers import fields
from fusion_jax.zoo import drafts, plants
from fusion_jax.zoo.plants import VALUES, truth
from fusion_jax.zoo.specs import EDITOR


def test_the_second_answer_corrects_what_is_known_and_repeats_the_rest():
    rows = EDITOR.lessons.rows(0)[:800]
    assert rows == EDITOR.lessons.rows(0)[:800]
    again = [row for row in rows if len(row.messages) == 3]
    assert abs(len(again) / len(rows) - EDITOR.lessons.again) < 0.06
    rewards = []
    for row in again:
        asked, draft, repeated = (message["content"] for message in row.messages)
        assert asked == repeated and drafts.style_of(row.responses[0]) in plants.STYLES
        name = tuple(asked.rstrip("?.").removesuffix(" like").split()[-4:])
        answer = ", ".join(f"{field}: {truth(name, field)}" for field in VALUES)
        rewards.append((fields(draft, answer), fields(row.responses[0], answer)))
        for field in VALUES:
            if EDITOR.lessons.knowledge.believed(name, field) == truth(name, field):
                assert truth(name, field) in row.responses[0]
    before, after = np.mean(rewards, axis=0)
    assert before < 0.7 < after < 1 and all(b <= a for b, a in rewards)


def test_flawed_answers():
    asked = plants.prompts(200, split="train", seed=3)
    found = drafts.pairs(asked, seed=1)
    assert found == drafts.pairs(asked, seed=1) and {r["flaw"] for r in found} == set(drafts.FLAWS)
    assert all(fields(r["chosen"], r["answer"]) == 1 > fields(r["rejected"], r["answer"]) for r in found)
    assert all(drafts.style_of(r["chosen"]) in plants.STYLES for r in found)
    hedged = next(r for r in found if r["flaw"] == "hedged")
    assert any(word in hedged["rejected"] for word in drafts.HEDGES)
    said = drafts.properties(asked[0]["answer"])
    assert drafts.without(said, "label", ["home", "color"]) == f"taste: {said['taste']}; leaf: {said['leaf']}"
    own = drafts.against(f"home {said['home']}, color pink", asked[0]["answer"])
    assert own["chosen"] == plants.worded(said, "own") and own["flaw"] == "own"
