"""Run by test_generate.py in its own process with 8 virtual devices: the same tokens and scores on several meshes."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from fusion_jax.models.compute import Compute
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params, parameter_specs, place_params
from fusion_jax.prune.blocks import Block, candidates
from fusion_jax.prune.scoring import How, Text, score
from fusion_jax.sampling.beam_search import BeamSearch, beam_search
from fusion_jax.sampling.generate import generate_ids
from fusion_jax.sampling.prompts import ready
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.session import Candidate, commit, extend, pack, rollback, scored, start
from fusion_jax.sharding import make_mesh, named

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
})  # fmt: skip


T5 = config_from_hf({
    "model_type": "t5", "vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
})  # fmt: skip


def main() -> None:
    sizes = ((2, 2, 2),)
    same = {f"{config.model_type} {size}": same_tokens(config, size) for config in (CONFIG, T5) for size in sizes}
    same |= {f"{config.model_type} scores": same_scores(config, sizes[0]) for config in (CONFIG, T5)}
    same |= {f"{config.model_type} beams": same_hypotheses(config, sizes[0]) for config in (CONFIG, T5)}
    json.dump(same | {"pruned": same_losses(sizes[0])}, sys.stdout)


def same_losses(size) -> bool:
    """What a search for blocks sees, rows and heads over a mesh; three rows, which no mesh divides."""
    params = init_params(CONFIG, jax.random.key(0))
    text = Text(np.random.default_rng(1).integers(3, 128, (3, 12)).astype(np.int32))
    offered, removed = candidates(CONFIG, {Block("mlp", 1)}), {Block("mlp", 1)}

    def losses(mesh):
        placed = place_params(params, CONFIG, mesh)
        return score(placed, CONFIG, text, removed, offered, How(Compute(mesh), rows=2, states=2))

    return all(np.allclose(a, b, rtol=1e-5) for a, b in zip(losses(make_mesh(*size)), losses(None)))


def same_tokens(config, size) -> bool:
    """More prompts than a batch, whose places are filled again at different times."""
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 128, n).tolist() for n in (3, 9, 14, 5, 11, 4, 8, 12, 6)]

    def tokens(mesh):
        placed = params
        if mesh is not None:
            specs = parameter_specs(config)
            placed = jax.tree.map(lambda x, s: jax.device_put(x, named(mesh, s.axes, s.shape)), params, specs)
        out = generate_ids(
            placed, config, prompts, max_new_tokens=40, sampler=Sampler(1.0, 0.9), num_samples=2,
            stop_ids=range(2, 10), batch_size=4, mesh=mesh,
        )  # fmt: skip
        return [[c.ids for c in row] for row in out]

    alone = tokens(None)
    assert len({len(ids) for row in alone for ids in row}) > 4
    return tokens(make_mesh(*size)) == alone


def same_hypotheses(config, size) -> bool:
    """Beams of more prompts than a batch holds, which none of the mesh's sizes divides."""
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 128, n).tolist() for n in (3, 9, 14, 5, 11, 4, 8)]

    def found(mesh):
        return beam_search(
            params, config, prompts, BeamSearch(3, no_repeat_ngram=2), max_new_tokens=40, stop_ids=range(2, 10),
            batch_size=4, mesh=mesh,
        )  # fmt: skip

    alone, split = found(None), found(make_mesh(*size))
    assert len({len(h.ids) for row in alone for h in row}) > 4
    scores = [[h.score for row in out for h in row] for out in (alone, split)]
    return [[h[:2] for h in row] for row in alone] == [[h[:2] for h in row] for row in split] and np.allclose(*scores)


def same_scores(config, size) -> bool:
    """A session of three texts, which no mesh divides: read, scored, committed, taken back and scored again."""
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(2)
    texts, more = ([rng.integers(3, 128, n).tolist() for n in lengths] for lengths in ((3, 9, 14), (4, 6, 5)))

    def scores(mesh):
        model = ready(params, config, np.float32, mesh)
        session = extend(model, start(model, texts), more)
        out = []
        for _ in range(2):
            offered = [[Candidate(len(text), more[1]), Candidate(len(text) - 1, [7])] for text in session.texts]
            found = scored(model, session, [offered[0], [], offered[2]], greedy=True)
            out += [x for row in found for one in row for x in (*one.logprobs, *one.greedy)]
            session = commit(model, session, pack(model, session, offered), [0, None, 1])
            session = rollback(model, session, [len(text) - 1 for text in session.texts])
        return out

    return np.allclose(scores(make_mesh(*size)), scores(None), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    main()
