"""The prompts on which the models of a run are judged."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_jax.data.asked import check_answers, parse_prompts
from fusion_jax.data.loaders import load_records
from fusion_jax.jsonl import Record
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.zoo.problems import problems


def eval_set(s: JudgedSettings, held_out: Sequence[Record], *, chat: bool = True) -> EvalSet:
    """Test prompts with answers: the user's or, without, problems that are held out.

    Raises:
      InputError: a prompt without an answer.
    """
    prompts = held_out
    if s.test_prompts:
        prompts = parse_prompts(load_records(s.test_prompts), file=s.test_prompts)
        check_answers(prompts, file=s.test_prompts, cure='Add "answer" to the test prompts')
    return EvalSet(prompts, s.eval_new_tokens, s.accuracy, chat)


def zoo_problems(s: JudgedSettings, per_skill: int, *, own_data: bool) -> tuple[list[Record], list[Record]]:
    """The zoo's problems to learn from, `per_skill` of each skill, and to be measured on; none beside own data."""
    if own_data:
        return [], []
    return problems("skills", per_skill, split="train", seed=s.seed + 1000), held_out_skills(s)


def held_out_skills(s: JudgedSettings) -> list[Record]:
    """The zoo's problems of the test side, as many of each skill as the settings say."""
    return problems("skills", s.test_per_skill, split="test", seed=s.seed) if s.test_per_skill else []
