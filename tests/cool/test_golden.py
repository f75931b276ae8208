"""The traces of a reference without caches, in float64: every proposal, list, winner, text; perplexities to 1e-3."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source, read_prompts, sources_of
from fusion_jax.cool.together import write
from fusion_jax.cool.words import Words, common
from fusion_jax.models.folder import load, logits
from fusion_jax.models.tokenizers import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "coolfusion"
NAMES = ("alpha", "beta", "gamma")


def folder(root: Path, variant: str, name: str) -> Path:
    """Weights and tokenizer side by side, as a folder of the hub has them."""
    made = root / variant / name
    made.mkdir(parents=True)
    for file in [*(GOLDEN / "models" / variant / name).iterdir(), *(GOLDEN / "tokenizers" / name).iterdir()]:
        shutil.copy(file, made)
    return made


@pytest.fixture(scope="module", params=["fit", "rand"])
def golden(request, tmp_path_factory) -> tuple[list[Source], dict]:
    root = tmp_path_factory.mktemp("cool")
    models = {name: load(folder(root, request.param, name)) for name in NAMES}
    traces = json.loads((GOLDEN / f"traces_{request.param}.json").read_text("utf-8"))
    return sources_of(models, [None] * 3), traces


def settings(traces: dict, **changes) -> CoolSettings:
    told = traces["settings"]
    own = CoolSettings(
        mode="cool", segment_tokens=told["max_segment_tokens"], max_segments=told["max_steps"],
        context=told["context_limit"], loop_guard=False, batch_size=1, max_new_tokens=told["solo_max_new_tokens"],
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
    for case in traces["cases"]:
        (written,) = run(sources, [case["prompt"]], settings(traces, **changes))
        same(written, case[kind])
