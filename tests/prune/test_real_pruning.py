"""SmolLM2-135M-Instruct, pruned: every form that it is saved in has the perplexity that the search saw.

The file is looked for as in `tests/parity/test_real_gguf.py`.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

import fusion_jax as fj
from fusion_jax.models.folder import Model
from fusion_jax.prune.blocks import PARTS, Block, Blocks, parameters_of, ratio
from fusion_jax.prune.calibration import calibration_rows
from fusion_jax.prune.export import served
from fusion_jax.prune.scoring import How, Text, perplexity, score
from fusion_jax.prune.search import removed_by, search
from fusion_jax.sampling.ids import generate_ids
from tests.parity.test_real_gguf import place

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
HOW = How(rows=2, states=8)
STEPS, ROWS, TOKENS = 6, 2, 96
WHOLE = 4
"""Besides what the search removes, both blocks of this layer go, and attention of the first one."""


def rows_of(name: str, model: Model, count: int) -> Text:
    """The first rows of a text of this repository."""
    return Text(np.asarray(calibration_rows([(ROOT / name).read_text()], model.tokenizer, TOKENS)[:count], np.int32))


def by_logits(model: Model, text: Text) -> float:
    """Perplexity by another way than the search's."""
    losses = []
    for row in text.rows:
        logprobs = np.asarray(jax.nn.log_softmax(fj.logits(model, row[None]))[0, :-1], np.float64)
        losses.append(-logprobs[np.arange(TOKENS - 1), row[1:]].mean())
    return perplexity(np.asarray(losses))


@pytest.fixture(scope="module")
def searched() -> tuple[Model, Blocks]:
    model = fj.load(place(), dtype="float32")
    text, start, steps = rows_of("LICENSE", model, ROWS), time.monotonic(), []
    whole = perplexity(score(model.params, model.config, text, (), (), HOW).base)
    for step in search(
        lambda gone, some: score(model.params, model.config, text, gone, some, HOW), model.config, STEPS
    ):
        steps.append(step)
        blocks = ", ".join(f"{block.part} {block.layer}" for block in step.chosen)
        print(f"without {blocks}: perplexity {step.perplexity:.4f}, {time.monotonic() - start:.0f} s")
    assert len(removed_by(steps)) == STEPS and steps[-1].perplexity < 2 * whole  # it is real: most blocks can be missed
    return model, removed_by(steps)


@pytest.mark.parametrize("more", [False, True])
def test_every_form_has_the_perplexity_of_the_search(searched, more, tmp_path):
    """Read back here (1e-5), and in transformers where it loads it (1e-4); greedy text equal in all of them."""
    model, removed = searched
    if more:
        removed = removed | {Block(part, WHOLE) for part in PARTS} | {Block("attention", 0)}
    text = rows_of("README.md", model, 4)
    wanted = perplexity(score(model.params, model.config, text, removed, (), HOW).base)
    print(
        f"{len(removed)} blocks, {100 * ratio(model.config, removed):.2f} % of {parameters_of(model.config):,} parameters"
    )
    prompt = model.tokenizer("The capital of France is")["input_ids"]
    texts = set()
    for form in ("hf", "native", "nemotron-nas", "nemotron-nas-filled"):
        fj.save(served(model, removed, form), tmp_path / form, dtype="float32")
        again = fj.load(tmp_path / form)
        if form in ("native", "nemotron-nas"):
            assert sum(x.size for x in jax.tree.leaves(again.params)) == parameters_of(model.config, removed)
        found = {"here": by_logits(again, text)}
        (((ids, *_),),) = generate_ids(again.params, again.config, [prompt], max_new_tokens=16)
        texts.add(tuple(ids))
        if form == "native":
            with pytest.raises(ValueError, match="fusion_jax_pruned"):
                transformers.AutoModelForCausalLM.from_pretrained(tmp_path / form)
        else:
            theirs = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path / form, dtype=torch.float32, trust_remote_code=form != "hf"
            ).eval()
            with torch.no_grad():
                losses = [theirs(torch.tensor(row[None]).long(), labels=torch.tensor(row[None]).long()).loss.item()
                          for row in text.rows]  # fmt: skip
            found["transformers"] = perplexity(np.asarray(losses))
            written = theirs.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :]
            texts.add(tuple(t for t in written.tolist() if t != theirs.generation_config.eos_token_id))
        size = sum(file.stat().st_size for file in (tmp_path / form).glob("*.safetensors"))
        print(f"{form}: {found}, {size / 1e6:.1f} MB")
        assert found.pop("here") == pytest.approx(wanted, rel=1e-5)
        assert all(value == pytest.approx(wanted, rel=1e-4) for value in found.values())  # float32 of another program
        shutil.rmtree(tmp_path / form)
    assert len(texts) == 1
    print(model.tokenizer.decode(texts.pop()))
