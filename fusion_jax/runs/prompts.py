"""The prompts on which the models of a run are judged."""

from __future__ import annotations

from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import check_answers, parse_prompts
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.zoo.tasks import SKILLS, mixture


def eval_set(s: JudgedSettings, *, own_data: bool, chat: bool = True) -> EvalSet:
    """Test prompts with answers: the user's; none beside own data without them; otherwise the zoo's problems.

    Raises:
      InputError: a prompt without an answer.
    """
    if s.test_prompts:
        prompts = parse_prompts(load_records(s.test_prompts), file=s.test_prompts)
        check_answers(prompts, file=s.test_prompts, cure='Add "answer" to the test prompts')
    else:
        per_skill = 0 if own_data else s.test_per_skill
        prompts = mixture(dict.fromkeys(SKILLS, per_skill), split="test", seed=s.seed) if per_skill else []
    return EvalSet(prompts, s.eval_new_tokens, s.accuracy, chat)
