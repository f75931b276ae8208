"""The prompts of a run: the user's, those of ready responses, or the zoo's problems."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import check_answers, parse_prompts
from fusion_jax.jsonl import Record
from fusion_jax.zoo.tasks import SKILLS, mixture


def training_prompts(
    prompts: str, given: Sequence[Record], responses: str, *, answers: bool, per_skill: int, seed: int
) -> list[Record]:
    """Prompts to train on, with what the records of each know.

    Args:
      prompts: file of prompts; where there is none, those of the responses given, or the zoo's problems.
      given: ready responses; responses: their file.
      answers: whether each needs an answer to be verified against.

    Raises:
      InputError: a record without the answer that it needs.
    """
    if not (prompts or given):
        return mixture(dict.fromkeys(SKILLS, per_skill), split="train", seed=seed + 1000)
    records = parse_prompts(load_records(prompts), file=prompts) if prompts else given
    if answers:
        cure = "Add it, for the target's responses are verified against it, or give a --reward-model"
        check_answers(records, file=prompts or responses, cure=cure)
    known: dict[str, Record] = {}
    for record in records:
        kept = record if prompts else ("prompt_id", "prompt", "answer", "skill")
        known.setdefault(record["prompt_id"], {}).update({k: record[k] for k in kept if record.get(k) is not None})
    return list(known.values())


def held_out_prompts(file: str, *, own_data: bool, per_skill: int, seed: int) -> list[Record]:
    """Test prompts with answers: the user's; none beside own data without them; otherwise the zoo's problems.

    Raises:
      InputError: a prompt without an answer.
    """
    if file:
        prompts = parse_prompts(load_records(file), file=file)
        check_answers(prompts, file=file, cure='Add "answer" to the test prompts')
        return prompts
    return [] if own_data else mixture(dict.fromkeys(SKILLS, per_skill), split="test", seed=seed)
