"""How the zoo's models are raised: decoders on lessons, judges on pairs of answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.records import Row, parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model, load
from fusion_jax.models.parameters import init_params
from fusion_jax.rewards.reward_data import reward_examples
from fusion_jax.rewards.reward_model import as_reward_model, score_responses
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.objectives import RewardSettings
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import drafts, model_path, plants
from fusion_jax.zoo.specs import JudgeSpec, ZooSpec
from fusion_jax.zoo.tokenizers import train_tokenizer

LONGEST = 128  # tokens of a text


def raise_model(spec: ZooSpec, run: RunFolder, *, seed: int, batch_size: int) -> Model:
    """Random weights and a fresh tokenizer, then SFT on the spec's lessons."""
    tokenizer = train_tokenizer(spec.tokenizer, spec.template, spec.vocab_size, spec.lessons.corpus(seed))
    config = spec.config(len(tokenizer))
    params = init_params(config, jax.random.key(seed))
    if spec.grown_from:
        params = grown(params, load(model_path(f"zoo:{spec.grown_from}")).params)
    model = Model(config, params, tokenizer)
    data, how = sft_data(spec.lessons.rows(seed), model), _settings(spec.learning_rate, spec.epochs, seed, batch_size)
    return optimise(model, data, objectives.sft(), how, run)


def sft_data(rows: list[Row], model: Model) -> Data:
    """Prompts and answers as a model learns them."""
    tokens = TokeniseSettings(max_length=LONGEST, max_prompt_length=96, eos="if_missing")
    return Data(make_examples(rows, model.tokenizer, TextSettings(tokens=tokens))[0])


def _settings(learning_rate: float, epochs: float, seed: int, batch_size: int) -> TrainSettings:
    return TrainSettings(
        optimizer=OptimizerSettings(learning_rate=learning_rate, weight_decay=0.05, beta2=0.98),
        epochs=epochs, batch_size=batch_size, micro_batches=1, seed=seed, log_every=20, eval_every=10**9,
        checkpoint_every=200, remat="dots", compute_dtype="float32",
    )  # fmt: skip


def grown(new: Params, old: Params) -> Params:
    """The weights of a deeper model that begins as `old`: its first layers, and above them new ones that add little to
    the stream, since their last matrices are a tenth of what they would be."""

    def each(path: tuple[jax.tree_util.DictKey, ...], fresh: jax.Array, known: jax.Array) -> jax.Array:
        if fresh.shape == known.shape:
            return known
        writes = path[-2].key in ("o", "down")
        return jnp.concatenate([known, fresh[len(known) :] * (0.1 if writes else 1.0)])

    return jax.tree_util.tree_map_with_path(each, new, old)


def raise_judge(spec: JudgeSpec, run: RunFolder, *, seed: int, batch_size: int) -> Model:
    """A reward model of one of the zoo's: it learns to write right answers, then to rank them above flawed ones."""
    prompts = plants.prompts(spec.pairs, split="train", seed=seed + 1, repeat=True)
    pairs, _ = parse_rows(drafts.graded(prompts, seed=seed), "pair")
    right = [Row(pair.name, pair.messages, pair.responses[:1]) for pair in pairs]
    model = load(model_path(f"zoo:{spec.grown_from}"), dtype="float32")
    knowing = _settings(spec.learning_rate, 1, seed, batch_size)
    taught = optimise(model, sft_data(right, model), objectives.sft(), knowing, run.sub("sft"))
    examples, _ = reward_examples(pairs, model.tokenizer, LONGEST)
    ranking = _settings(spec.learning_rate / 2, spec.epochs, seed, batch_size)
    judge = as_reward_model(taught, seed)
    return optimise(judge, Data(examples), objectives.rewards(RewardSettings()), ranking, run.sub("pairs"))


def ranked(judge: Model, count: int, seed: int) -> float:
    """The share of pairs of answers about other plants of which a judge prefers the right one."""
    pairs = drafts.graded(plants.prompts(count, split="validation", seed=seed), seed=seed)
    chosen, rejected = (
        score_responses(judge, [{"prompt": p["prompt"], "response": p[side]} for p in pairs], batch_size=64)
        for side in ("chosen", "rejected")
    )
    return sum(a["reward"] > b["reward"] for a, b in zip(chosen, rejected, strict=True)) / count
