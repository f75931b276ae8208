"""The prompts on which the models of a run are judged."""

from __future__ import annotations

from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import check_answers, parse_prompts
from fusion_jax.jsonl import Record
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
        prompts = [] if own_data else held_out_problems(s)
    return EvalSet(prompts, s.eval_new_tokens, s.accuracy, chat)


def held_out_problems(s: JudgedSettings) -> list[Record]:
    """The zoo's problems of the test side, as many of each skill as the settings say."""
    skills = SKILLS if s.test_per_skill else ()
    return mixture(dict.fromkeys(skills, s.test_per_skill), split="test", seed=s.seed)
