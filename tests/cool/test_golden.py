"""The traces of a reference without caches, in float64: every proposal, list, winner, text; perplexities to 1e-3."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.cool.answers import answers, best
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source, read_prompts, sources_of
from fusion_jax.cool.together import write
from fusion_jax.cool.words import Words, common
from fusion_jax.models.folder import Model, load
from fusion_jax.models.tokenizers import load_tokenizer

pytestmark = pytest.mark.usefixtures("quick_compiler")

GOLDEN = Path(__file__).parents[1] / "golden" / "coolfusion"
NAMES = ("alpha", "beta", "gamma")


def folder(root: Path, variant: str, name: str) -> Path:
    """Weights and tokenizer side by side, as a folder of the hub has them."""
    made = root / variant / name
    made.mkdir(parents=True)
    for file in [*(GOLDEN / "models" / variant / name).iterdir(), *(GOLDEN / "tokenizers" / name).iterdir()]:
        shutil.copy(file, made)
    return made


def alike(model: Model) -> Model:
    """How weights began is of no matter here, and models that differ in no more share their programs."""
    return replace(model, config=replace(model.config, initializer_range=0.02))


@pytest.fixture(scope="module", params=["fit", "rand"])
def golden(request, tmp_path_factory) -> tuple[list[Source], dict]:
    root = tmp_path_factory.mktemp("cool")
    models = {name: alike(load(folder(root, request.param, name))) for name in NAMES}
    traces = json.loads((GOLDEN / f"traces_{request.param}.json").read_text("utf-8"))
    return sources_of(models, chat=False), traces


def settings(traces: dict, **changes) -> CoolSettings:
    told = traces["settings"]
    own = CoolSettings(
        mode="cool", segment_tokens=told["max_segment_tokens"], max_segments=told["max_steps"],
        context=told["context_limit"], loop_guard=False, batch_size=3, max_new_tokens=told["solo_max_new_tokens"],
    )  # fmt: skip
    return replace(own, **changes)


def run(sources, prompts: list[str], s: CoolSettings):
    read = [read_prompts(source, prompts, chat=False) for source in sources]
    return [one for _, one in sorted(write(sources, list(zip(*read, strict=True)), s))]


def same(written, expected: dict) -> None:
    assert written.text == expected["final_text"]
    assert (written.ended, written.stop.replace("max_segments", "max_steps")) == (expected["ended"], expected["stop"])
    assert len(written.steps) == len(expected["steps"])
    for step, wanted in zip(written.steps, expected["steps"], strict=True):
        for own, theirs in zip(step.proposals, wanted["candidates"], strict=True):
            assert (own.text, own.end, own.reason) == (theirs["segment"], theirs["end"], theirs["reason"])
            assert list(own.ids) == theirs["generated_ids"]
        assert [(one.text, one.end) for one in step.offers] == [(x["segment"], x["end"]) for x in wanted["scored"]]
        assert step.winner == wanted["winner"]
        if len(step.offers) == 1:
            assert step.scores == () and sum(step.packed) <= 3
            continue
        for place, theirs in enumerate(wanted["scored"]):
            np.testing.assert_allclose(step.scores[place], theirs["mean_ppl"], rtol=1e-3)
            for own, scores in zip((one[place] for one in step.opinions), theirs["scores"], strict=True):
                assert list(own.ids) == scores["token_ids"] and len(own.ids) == scores["n_tokens"]
                np.testing.assert_allclose(own.perplexity, scores["ppl"], rtol=1e-3)
                np.testing.assert_allclose(own.nll, scores["nll_sum"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["aligned", "shortest", "aligned_closed"])
def test_every_step_of_every_trace(golden, kind):
    sources, traces = golden
    changes = {"mode": "cool_shortest"} if kind == "shortest" else {"closed": kind == "aligned_closed"}
    found = run(sources, [case["prompt"] for case in traces["cases"]], settings(traces, **changes))
    for written, case in zip(found, traces["cases"], strict=True):
        same(written, case[kind])


def test_short_caps_and_short_contexts(golden):
    sources, traces = golden
    for case in traces["tight_cap_cases"]:
        told = {"segment_tokens": case["max_segment_tokens"], "max_segments": case["max_steps"]}
        same(run(sources, [case["prompt"]] * 3, settings(traces, **told))[2], case["aligned"])
    for case in traces["context_limit_cases"]:
        same(run(sources, [case["prompt"]] * 3, settings(traces, context=case["context_limit"]))[2], case["aligned"])


def test_answers_alone_and_the_one_that_all_like_best(golden):
    sources, traces = golden
    prompts, s = [case["prompt"] for case in traces["cases"]], settings(traces, mode="cool_rerank")
    for found, case in zip(answers(sources, prompts, s, chat=False), traces["cases"], strict=True):
        for own, theirs in zip(found.alone, case["solo"], strict=True):
            assert (own.by, own.text, own.ended) == (theirs["model"], theirs["text"], theirs["end"])
        for mode, count in (("rerank", 3), ("cool_plus_rerank", 4)):
            wanted, some = case[mode], found.candidates[:count]
            chosen = best(found.alone, found.together, some)
            assert (chosen.winner, chosen.text) == (wanted["winner"], wanted["text"])
            for own, theirs in zip(some, wanted["candidates"], strict=True):
                assert (own.text, own.ended) == (theirs["text"], theirs["end"])
                if theirs["mean_ppl"] is None:
                    assert own.score == np.inf
                    continue
                np.testing.assert_allclose(own.score, theirs["mean_ppl"], rtol=1e-3)
                for one, scores in zip(own.opinions, theirs["scores"], strict=True):
                    assert len(one.ids) == scores["n_tokens"]
                    np.testing.assert_allclose(one.perplexity, scores["ppl"], rtol=1e-3)


def test_one_prompt_gives_what_a_batch_gives(golden):
    """The traces are those of single prompts; above they come from three rows, of which finished ones make room."""
    sources, traces = golden
    case = traces["cases"][1]  # short: programs of few widths
    same(run(sources, [case["prompt"]], settings(traces))[0], case["aligned"])


def test_passes_through_each_model_are_bounded(golden):
    """Of n + s tokens written: n + s - 1, and one more for segments that a model has not written so itself."""
    sources, traces = golden
    for written in run(sources, [case["prompt"] for case in traces["cases"]], settings(traces)):
        for step in written.steps:
            (offer,) = step.offers if len(step.offers) == 1 else (None,)
            for proposal, packed in zip(step.proposals, step.packed, strict=True):
                assert proposal.forwards == len(proposal.ids) - 1
                assert not packed or offer is None or not offer.end


def test_tokenizers_and_boundaries():
    every = {name: Words(load_tokenizer(GOLDEN / "tokenizers" / name)) for name in NAMES}
    for case in json.loads((GOLDEN / "tokenizer_check.json").read_text("utf-8")):
        text, starts = case["text"], []
        for name, expected in case["per_model"].items():
            (found,) = every[name].encode([text])
            assert list(found.ids) == expected["ids"] and list(found.ends) == [end for _, end in expected["offsets"]]
            assert every[name].decode([found.ids]) == [expected["decoded"]]
            starts.append(every[name].starts(text))
            assert starts[-1] == expected["starts"]
        assert common(starts) == case["common_starts"]
