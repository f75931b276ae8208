"""Rounds of SEFT on cases worked by hand: which draft is taken, what becomes of it, anchors, measures, alarms."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fusion_jax.data.examples import TextSettings
from fusion_jax.runs import evolving, examining
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.evolving import EvolutionSettings, best_rewarded, first_drafts, mixed, pseudo_labels, usable
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.provenance import Ran
from fusion_jax.runs.revising import Revision
from fusion_jax.runs.rounds import Rounds
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.settings import TrainSettings
from tests.small import small_model

HOW = SampleSettings(num_samples=1, max_new_tokens=4)


def prompt(name: str, *texts: str, unfinished: tuple[int, ...] = ()) -> dict:
    found = [
        {"text": t, "finished": i not in unfinished, "tokens": len(t.split()), "logprob": -1.0}
        for i, t in enumerate(texts)
    ]
    return {"prompt_id": name, "prompt": f"{name}?", "answer": "good", "candidates": found}


KEEPS = {"good": 0.9, "fair": 0.6, "fair too": 0.6, "bad": 0.2, "worse": 0.1}
DRAFTS = [
    prompt("a", "bad", "good", "fair"), prompt("b", "fair", "fair too", "bad"), prompt("c", "bad", "worse", "bad"),
    prompt("d", "worse"), prompt("e", "good", "", unfinished=(0,)), prompt("f", "good", "fair", unfinished=(0,)),
]  # fmt: skip


@pytest.fixture
def reviser(monkeypatch):
    """Decides by `KEEPS`; revises "bad" well, and "worse" in vain."""

    def decide(reviser, asked):
        keep = np.asarray([KEEPS[one.draft] for one in asked]).reshape(-1, 1)
        return np.log(np.concatenate([keep, 1 - keep], 1))

    def revise(reviser, asked, scores, how, seed):
        assert scores is None or len(scores) == len(asked)
        return [Revision("better", "") if a.draft == "bad" else Revision("so", "empty") for a in asked]

    monkeypatch.setattr(evolving, "decide", decide)
    monkeypatch.setattr(evolving, "revise", revise)
    return SimpleNamespace(threshold=0.6)


def test_the_draft_of_the_highest_p_keep_is_kept_left_out_or_revised(reviser):
    assert [usable(d) for d in DRAFTS] == [[0, 1, 2], [0, 1, 2], [0, 1], [0], [], [1]]
    inner = pseudo_labels(reviser, DRAFTS, "internal", HOW, 0)
    assert [r["response"] for r in inner] == ["good", "fair", None, None, None, "fair"]
    assert [r["why"] for r in inner] == [
        "kept", "kept", "below the threshold", "below the threshold", "no finished draft", "kept"
    ]  # fmt: skip
    assert [r.get("draft") for r in inner] == [1, 0, 0, 0, None, 1]
    assert inner[0]["p_keeps"] == pytest.approx([0.2, 0.9, 0.6])
    outer = pseudo_labels(reviser, DRAFTS, "external", HOW, 0)
    assert [r["response"] for r in outer] == ["good", "fair", "better", None, None, "fair"]
    assert [r["why"] for r in outer][2:4] == ["revised", "empty"] and outer[2]["text"] == "bad"
    always = pseudo_labels(reviser, DRAFTS, "always", HOW, 0)
    assert [r["response"] for r in always] == ["better", None, "better", None, None, None]
    assert pseudo_labels(reviser, [], "external", HOW, 0) == []


def test_no_prompt_depends_on_the_others(reviser):
    """So that shards may be of any size."""
    whole = pseudo_labels(reviser, DRAFTS, "external", HOW, 0)
    assert whole == [r for d in DRAFTS for r in pseudo_labels(reviser, [d], "external", HOW, 0)]


def test_baselines_choose_by_reward_or_take_the_first():
    def judge(records):
        return [KEEPS.get(r["response"]) if r["prompt_id"] != "d" else None for r in records]

    best = best_rewarded(DRAFTS, judge)
    assert [r["response"] for r in best] == ["good", "fair", "bad", None, None, "fair"]
    assert [r["why"] for r in best][3:5] == ["no reward", "no finished draft"]
    assert [r["response"] for r in first_drafts(DRAFTS)] == ["bad", "fair", "bad", "worse", None, "fair"]


def test_anchors_are_a_share_of_the_whole():
    labels = [{"response": "x"}] * 18 + [{"response": None}] * 5
    anchored = [{"response": str(i)} for i in range(10)]
    found = mixed(labels, anchored, 0.1, 0)
    assert len(found) == 20 and found[:18] == labels[:18] and all(r in anchored for r in found[18:])
    assert found == mixed(labels, anchored, 0.1, 0) and len(mixed(labels, anchored, 0.0, 0)) == 18
    assert len(mixed(labels, anchored[:1], 0.5, 0)) == 19
    s = EvolutionSettings(rounds=3, internal=1, round_prompts=4)
    assert [s.mode(n) for n in (1, 2, 3)] == ["internal", "external", "external"]
    assert [s.shard([{"n": i} for i in range(9)], n) for n in (1, 3)] == [[{"n": i} for i in range(4)], [{"n": 8}]]


def held(high: float, low: float, revised: float, why: str = "", lengths: tuple[int, int] = (10, 10), **rewards: float):
    side = {"p_keep": high, "revised": "", "why": "", "tokens": [lengths[0], 10], "p_keep_revised": high}
    good = side | {"reward": rewards.get("high", 1.0), "reward_revised": rewards.get("high_revised", 1.0)}
    bad = side | {"p_keep": low, "why": why, "tokens": [lengths[1], lengths[1]], "p_keep_revised": revised}
    bad |= {"reward": rewards.get("low", 0.25), "reward_revised": rewards.get("low_revised", 0.5)}
    return {"pair_id": "x", "flaw": None, "high": good, "low": bad}


def test_measures_of_a_reviser_by_hand():
    records = [
        held(0.9, 0.1, 0.8), held(0.8, 0.3, 0.2, low_revised=0.25), held(0.7, 0.75, 0.9, why="empty"),
        held(0.2, 0.15, 0.3, lengths=(10, 4), high_revised=0.5),
    ]  # fmt: skip
    found = examining.examination(records, preserve=0.75)
    assert found.threshold == 0.7 and found.keep_high == 0.75 and found.keep_low == 0.25
    assert found.auc == pytest.approx(13 / 16) and found.matched == pytest.approx(8 / 9)
    assert found.valid == 0.75 and found.length_ratio == 1 and found.idempotent == pytest.approx(2 / 3)
    assert found.wins == pytest.approx((3 + 0.5) / 4) and found.wins_high == 0 and found.harm == 0.25
    assert found.rewards == pytest.approx((0.25, 0.4375, 1.0, 0.875))
    unknown = [r | {"low": r["low"] | {"reward": None}} for r in records]
    assert math.isnan(examining.examination(unknown, 0.75).wins)
    assert "harm" not in examining.measures_table(examining.examination(unknown, 0.75)).split("bad answers")[0]
    some = examining.examination([*records, unknown[0]], 0.75)  # one that is not judged erases nothing
    assert (some.wins, some.harm, some.rewards[:2]) == (found.wins, 0.2, found.rewards[:2][:1] + (0.45,))
    assert (some.pairs, some.judged) == (5, 4) and "| 5; 4 |" in examining.measures_table(some)
    nothing = examining.examination([], 0.9)
    assert nothing.threshold == 0.5 and math.isnan(nothing.auc)


def test_measures_and_alarms_of_rounds(reviser):
    def judge(records):
        return [KEEPS.get(r["response"], 0.5) for r in records]

    labels = pseudo_labels(reviser, DRAFTS, "external", HOW, 0)
    one = examining.round_of("SEFT-1", DRAFTS, labels, examining.rewarded(DRAFTS, labels, judge))
    assert (one.prompts, one.kept, one.revised) == (6, 3 / 6, 1 / 6)
    assert one.best == pytest.approx(np.mean([0.9, 0.6, 0.2, 0.1, 0.6]))
    assert (one.before_revision, one.after_revision) == (0.2, 0.5)
    assert one.judged == 1
    calls = []

    def strange(records):
        calls.append(len(records))
        return [None if r["response"] == "worse" else KEEPS.get(r["response"], 0.5) for r in records]

    rewards = examining.rewarded(DRAFTS, labels, strange)
    assert calls == [11] and rewards[2] == {"prompt_id": "c", "candidates": [0.2, None], "text": 0.2, "response": 0.5}
    other = examining.round_of("SEFT-1", DRAFTS, labels, rewards)
    assert other.judged == 0.8 and other.best == pytest.approx(np.mean([0.9, 0.6, 0.2, 0.6]))
    assert (other.before_revision, other.after_revision, other.taken) == (0.2, 0.5, pytest.approx(0.575))
    one = dataclasses.replace(one, distinct=0.8)
    good = examining.examination([held(0.9, 0.1, 0.8)] * 19 + [held(0.1, 0.96, 0.8)], 0.9)
    assert examining.alarms(good, [one], []) == []
    longer = dataclasses.replace(one, name="SEFT-2", length=1.3 * one.length, distinct=0.5 * one.distinct, taken=0.0)
    told = " ".join(examining.alarms(good, [one, longer], [0.3, 0.4, 0.35]))
    for part in ("SEFT-2 are 30 % longer", "vary less", "highest p_keep are rewarded less", "SEFT-2 answers worse"):
        assert part in told
    careful = examining.examination([held(0.9, 0.1, 0.8)] * 3 + [held(0.8, 0.96, 0.9)], 1.0)
    assert careful.keep_high == 1 and "labels have collapsed" not in " ".join(examining.alarms(careful, [], []))
    perfect = examining.examination([held(0.9, 0.1, 0.8)] * 40, 0.95)
    assert perfect.keep_low == 0 and examining.alarms(perfect, [], []) == []
    collapsed = examining.examination([held(0.9, 0.95, 0.9, high_revised=0.0)] * 4, 0.9)
    told = " ".join(examining.alarms(collapsed, [], []))
    for part in ("100 % of the bad", "hardly tells", "would harm 100 %", "Only 0 %"):
        assert part in told


def test_a_draft_that_the_reviser_cannot_read_has_no_p_keep(reviser, monkeypatch):
    monkeypatch.setattr(evolving, "decide", lambda reviser, asked: np.full((len(asked), 2), np.nan))
    [inner] = pseudo_labels(reviser, DRAFTS[3:4], "internal", HOW, 0)
    assert (inner["p_keep"], inner["p_keeps"], inner["why"]) == (None, [None], "unreadable")
    told = examining.round_of(
        "SEFT-1", DRAFTS[3:4], [inner], examining.rewarded(DRAFTS[3:4], [inner], lambda r: [None])
    )
    assert math.isnan(told.p_keep) and math.isnan(told.reward) and told.judged == 0


def test_without_anchors_none_are_made_and_a_round_that_fills_no_batch_trains_nothing(tmp_path):
    """Counted are examples: the template changes two of the five answers."""
    model = small_model()
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("| trim", "| replace('~', '') | trim")
    desk = Desk(RunFolder(tmp_path, Console(quiet=True)), "", Ran("", SimpleNamespace(seed=0), {}))
    stage = Stage("SEFT-1", "--policy", TrainSettings(batch_size=4, micro_batches=1), TextSettings())
    rounds = Rounds(desk, EvolutionSettings(anchor=0), stage, EvalSet([], 4), model, [], lambda records: [])
    assert rounds.anchored_by(None) is rounds
    said = [{"prompt_id": str(i), "prompt": "a", "response": "b~" if i < 2 else "b"} for i in range(5)]
    assert rounds._learnt(stage, model, said) is model and desk.counts["SEFT-1"]["used"] == 3
    assert rounds._learnt(stage, model, said[:2]) is model


def test_the_course_of_a_policy_is_told_by_reward_or_else_by_accuracy():
    found = {"Target": {"accuracy": 0.5}, "SEFT-1": {"accuracy": 0.4}}
    assert examining.course(found, ["Target", "SEFT-1"]) == [0.5, 0.4]
    rewarded = {name: {**of, "mean reward": 0.1} for name, of in found.items()}
    assert examining.course(rewarded, ["Target", "SEFT-1"]) == [0.1, 0.1]
    assert math.isnan(examining.course({}, ["Target", "SEFT-1"])[1])
