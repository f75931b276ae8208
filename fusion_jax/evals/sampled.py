"""What greedy accuracy hides: the mean reward of sampled answers, and the probability of the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from fusion_jax.data.batches import Data, buckets_for
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.jsonl import Record
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import place_params
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.train.reference import sequence_logprobs


def mean_rewards(
    model: Model, prompts: Sequence[Record], reward: Callable[[str, str], float], how: SampleSettings, *, seed: int
) -> list[float]:
    """The mean reward of `how.num_samples` sampled answers to each prompt, in their order.

    Args:
      reward: (response, answer) -> number.
    """
    answers = sample_responses(model, "", prompts, how, seed=seed)
    rewards = [reward(a["response"], a["answer"]) for a in answers]
    return np.reshape(rewards, (len(prompts), how.num_samples)).mean(1).tolist()


def right_probabilities(
    model: Model, prompts: Sequence[Record], compute: Compute, *, batch_size: int = 64
) -> list[float | None]:
    """P(right | prompt) = sum over wordings w of exp(sum over t of log p(w_t | prompt, w_<t)), for each prompt.

    There is no sampling in it. The wordings are the texts of the prompt's field "wordings", each with the end of its
    turn; a prompt without them, or with one that the model cannot read, has None. Other wordings may be right as well:
    it is a lower bound.
    """
    rows = [
        Row(str(number), ({"role": "user", "content": prompt["prompt"]},), (wording,))
        for number, prompt in enumerate(prompts)
        for wording in dict.fromkeys(prompt.get("wordings") or ())
    ]
    if not rows:
        return [None] * len(prompts)
    most = model.config.max_positions
    text = TextSettings(tokens=TokeniseSettings(max_length=most, max_prompt_length=most - 1, eos="if_missing"))
    examples, _ = make_examples(rows, model.tokenizer, text)
    data = Data(examples, lambda i: rows[i].name)
    params, buckets = place_params(model.params, model.config, compute.mesh), buckets_for(data.extents)
    logprobs = sequence_logprobs(params, model.config, data, compute, batch_size=batch_size, buckets=buckets)
    left = Counter(int(row.name) for row in rows)
    found = [0.0] * len(prompts)
    for example, value in zip(examples, logprobs[:, 0]):
        if len(example.rows[0]) >= most:  # cut
            continue
        number = int(rows[example.index].name)
        found[number] += float(np.exp(value))
        left[number] -= 1
    return [None if left[i] or not prompt.get("wordings") else found[i] for i, prompt in enumerate(prompts)]
