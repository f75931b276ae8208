"""The searches, ablations, calibration rows and logits of the official program (tests/golden/blockpruner)."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.prune import scoring
from fusion_jax.prune.blocks import Block, candidates, parameters_of, ratio
from fusion_jax.prune.calibration import alpaca_sample, calibration_rows
from fusion_jax.prune.influence import influence
from fusion_jax.prune.scoring import How, Text, perplexity, score
from fusion_jax.prune.search import from_official, one_shot, removed_by, search, to_official

pytestmark = pytest.mark.usefixtures("quick_compiler")
GOLDEN = Path(__file__).parents[1] / "golden" / "blockpruner"
MODELS = ["llama-mha-8l", "llama-gqa-tied-6l", "qwen2-gqa-pad-7l"]
KINDS = {"mha": "attention", "mlp": "mlp"}


def read(*names: str):
    return json.loads(GOLDEN.joinpath(*names).read_text())


def block(value) -> Block:
    return Block(KINDS[value[0]], value[1])


@cache
def opened(name: str):
    model = fj.load(GOLDEN / name / "model")
    text = Text(np.asarray(read(name, "calib.json")["rows"], np.int32), model.hf_config.get("pad_token_id") or None)

    def scorer(removed, offered):
        return score(model.params, model.config, text, removed, offered)

    return model, text, scorer


@pytest.mark.parametrize("unit", ["mix", "mha", "mlp"])
@pytest.mark.parametrize("name", MODELS)
def test_official_searches(name, unit):
    """Removals, the perplexity without every candidate (1e-5; float64 beside), parameters, the official file."""
    model, _, scorer = opened(name)
    golden = read(name, f"search_{unit}.json")
    steps = list(search(scorer, model.config, golden["num_remove"], unit))
    assert parameters_of(model.config) == golden["params_total"]
    for number, (step, wanted) in enumerate(zip(steps, golden["steps"], strict=True), 1):
        assert step.chosen == (frozenset({block(wanted["chosen"])}) if wanted["chosen"] else frozenset())
        assert not step.chosen or step.perplexity == pytest.approx(wanted["ppl"], rel=1e-5)
        assert [next(iter(blocks)) for blocks, _ in step.scores] == [block(c["block"]) for c in wanted["candidates"]]
        found = [value for _, value in step.scores]
        np.testing.assert_allclose(found, [c["ppl"] for c in wanted["candidates"]], rtol=1e-5)
        if not wanted["chosen"]:
            continue
        removed = removed_by(steps[:number])
        assert parameters_of(model.config, removed) == wanted["params_left"]
        assert 100 * ratio(model.config, removed) == pytest.approx(wanted["ratio_percent"])
    official = to_official(steps)
    sets = [{tuple(one) for one in each} for each in official.values()]
    assert sets == [{tuple(one) for one in each} for each in golden["official_file_content"].values()]
    assert from_official(official, model.config) == [step.chosen for step in steps]


@pytest.mark.parametrize("name", MODELS)
def test_official_ablations(name):
    model, text, scorer = opened(name)
    golden = read(name, "ablations.json")
    for step, wanted in zip(one_shot(scorer, model.config, len(golden["one_shot"])), golden["one_shot"], strict=True):
        assert step.chosen == {block(wanted["added"])} and step.perplexity == pytest.approx(wanted["ppl"], rel=1e-5)
    layers = golden["layer_greedy"]
    for step, wanted in zip(search(scorer, model.config, len(layers), "layer"), layers, strict=True):
        assert {one.layer for one in step.chosen} == {wanted["chosen_layer"]} and len(step.chosen) == 2
        assert step.perplexity == pytest.approx(wanted["ppl"], rel=1e-5)
    found = influence(model.params, model.config, text, How(rows=3))
    for one in golden["block_influence"]:
        assert found.blocks[block(one["block"])] == pytest.approx(one["bi"], abs=1e-6)
    assert found.layers == pytest.approx([one["bi"] for one in golden["layer_influence"]], abs=1e-6)
    for one in golden["relative_magnitude"]:
        assert found.magnitude[block(one["block"])] == pytest.approx(one["rm"], rel=1e-5)


def test_a_search_goes_on_where_it_ended():
    model, _, scorer = opened("llama-gqa-tied-6l")
    whole = list(search(scorer, model.config, 5))
    assert list(search(scorer, model.config, 5, done=whole[:3])) == whole[3:]


@pytest.mark.parametrize(("rows", "states"), [(2, 1), (5, 3), (7, 16)])
def test_sizes_change_nothing(rows, states):
    """Rows and states at once: each row's loss, also where the last batch and the last chunk are not full."""
    model, text, _ = opened("qwen2-gqa-pad-7l")
    removed, offered = (
        {Block("attention", 0), Block("mlp", 3)},
        candidates(model.config, {Block("attention", 0), Block("mlp", 3)}),
    )
    first = score(model.params, model.config, text, removed, offered)
    other = score(model.params, model.config, text, removed, offered, How(rows=rows, states=states))
    np.testing.assert_allclose(other.base, first.base, rtol=2e-6)
    np.testing.assert_allclose(other.candidates, first.candidates, rtol=2e-6)


def test_a_step_computes_what_it_must():
    """Block calls of a step in which all layers are whole: every candidate from its own layer on, one attention a
    candidate without a feed-forward; and no program is compiled for another set of removed blocks."""
    model, text, scorer = opened("llama-mha-8l")
    layers, counted = model.config.layers, Counter()
    how = How(rows=7, states=1, count=lambda parts, states: counted.update({part: states for part in parts}))
    score(model.params, model.config, text, (), candidates(model.config, ()), how)
    after = sum(1 + 2 * layer for layer in range(layers))  # states that pass each layer: the base and those before it
    assert counted == {"attention": after + layers, "mlp": after + layers}
    for removed in ({Block("mlp", 2)}, {Block("attention", 4), Block("mlp", 4), Block("attention", 1)}):
        scorer(frozenset(removed), candidates(model.config, removed))
    program = scoring.layer_step(how.compute)
    compiled = program._cache_size()
    removed = frozenset({Block("attention", 5), Block("mlp", 5), Block("attention", 0)})
    scorer(removed, candidates(model.config, removed))
    assert program._cache_size() == compiled


def test_rows_of_the_official_program():
    expected = read("dataprep", "expected.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(GOLDEN / "dataprep")
    rows = calibration_rows(expected["texts"], tokenizer, expected["seqlen"])
    np.testing.assert_array_equal(rows, expected["rows"])
    with pytest.raises(InputError, match=r"the 1 documents have \d+ tokens, a row has 5000"):
        calibration_rows(expected["texts"][:1], tokenizer, 5000)


def test_documents_of_the_official_program():
    golden = read("alpaca_sample_rows.json")["rows"]
    assert {count: alpaca_sample(int(count)) for count in golden} == golden
    with pytest.raises(InputError, match="5201 documents are more than the 5200"):
        alpaca_sample(5201)


@pytest.mark.parametrize(("values", "told"), [
    ({"1": [["mha", 0]], "3": []}, "'2': is missing"), ({"1": [["attention", 0]]}, "holds .'attention', 0."),
    ({"1": [["mha", 8]]}, "a layer from 0 to 7"), ({"1": [["mha", 1]], "2": [["mlp", 1]]}, "lacks a block"),
])  # fmt: skip
def test_official_files_that_are_refused(values, told):
    with pytest.raises(InputError, match=told):
        from_official(values, opened("llama-mha-8l")[0].config, "x.json")


def test_candidates_within_rounding_are_scored_alone():
    """Two that differ by less than rounding: what each is worth alone decides, and of equals the first."""
    config, asked = opened("llama-mha-8l")[0].config, []

    def nearly(removed, offered):
        if not offered:
            asked.append(removed)
            return scoring.Losses(np.full(2, 1.0 - 1e-8 * (Block("mlp", 2) in removed)), np.zeros((0, 2)))
        values = np.full((len(offered), 2), 2.0)
        values[[3, 10]] = [[1.0], [1.0 + 1e-9]]
        return scoring.Losses(np.ones(2), values)

    (step,) = search(nearly, config, 1)
    assert step.chosen == {Block("mlp", 2)} and len(asked) == 2


def test_padding_and_rows_without_a_label():
    """A padded row counts as the same row alone; influence leaves padding out; a row that scores nothing is refused."""
    model, text, _ = opened("llama-gqa-tied-6l")
    rows, lengths = text.rows[:3].copy(), np.asarray([20, 9, 14])
    padded = Text(np.where(np.arange(rows.shape[1]) < lengths[:, None], rows, 7), lengths=lengths)
    found = score(model.params, model.config, padded, (), (), How(rows=2)).base
    alone = [
        score(model.params, model.config, Text(rows[i : i + 1, :n]), (), ()).base[0] for i, n in enumerate(lengths)
    ]
    np.testing.assert_allclose(found, alone, rtol=2e-6)
    every = influence(model.params, model.config, padded, How(rows=2)).layers
    each = [influence(model.params, model.config, Text(rows[i : i + 1, :n])).layers for i, n in enumerate(lengths)]
    np.testing.assert_allclose(every, np.average(each, axis=0, weights=lengths), rtol=1e-4)
    nothing = Text(rows, scored=np.arange(rows.shape[1]) < np.asarray([[5], [1], [5]]))
    with pytest.raises(InputError, match="record 2, field 'calibration': no token of it is scored"):
        score(model.params, model.config, nothing, (), ())


def test_scores_that_are_not_finite_never_win():
    config = opened("llama-mha-8l")[0].config

    def broken(removed, offered):
        values = np.full((len(offered), 2), np.nan)
        values[3:5] = [[2.0], [3.0]]
        return scoring.Losses(np.ones(2), values)

    (step,) = search(broken, config, 1)
    assert step.chosen == {Block("attention", 3)} and step.perplexity == pytest.approx(np.exp(2))
    (step,) = search(lambda r, c: scoring.Losses(np.ones(2), np.full((len(c), 2), np.inf)), config, 1)
    assert not step.chosen
    with pytest.raises(InputError, match="0 blocks are to be removed"):
        next(search(broken, config, 0))
    assert perplexity(np.asarray([0.0, 2.0])) == pytest.approx(np.e)
