"""Tasks of lm-eval whose data are the zoo's problems, one of each kind of request: for a run without a hub."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.zoo.problems import problems
from fusion_jax.zoo.tasks import plain_text

CHOICES = 4
ANSWER = r"(?:answer is |Answer: |^)([0-9a-l]+(?: [0-9a-l]+)*)"  # in the wordings of the miniatures


def zoo_tasks(per_skill: int, *, seed: int) -> dict[str, dict[str, Any]]:
    """The configurations of the tasks, by name, as `lm_eval.simple_evaluate` takes them.

    zoo_choices: which of four answers is right (`multiple_choice`); zoo_answers: what the model answers
    (`generate_until`); zoo_texts: held-out problems and their answers as texts (`loglikelihood_rolling`).

    Args:
      per_skill: problems of each of the skills; as many of the training side for few-shot contexts.
    """
    sides = {side: with_choices(problems("skills", per_skill, split=side, seed=seed)) for side in ("train", "test")}
    texts = {"test": [{"text": plain_text(one)} for one in sides["test"]]}
    shared = {
        "training_split": "train", "fewshot_split": "train", "test_split": "test", "custom_dataset": _data(sides),
        "doc_to_text": "{{prompt}}", "target_delimiter": "\n",
    }  # fmt: skip
    return {
        "zoo_choices": {
            "task": "zoo_choices", **shared, "output_type": "multiple_choice", "doc_to_choice": "choices",
            "doc_to_target": "place", "metric_list": [_mean("acc"), _mean("acc_norm")],
        },
        "zoo_answers": {
            "task": "zoo_answers", **shared, "output_type": "generate_until", "doc_to_target": "answer",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 28, "do_sample": False},
            "filter_list": [{"name": "answer", "filter": [
                {"function": "regex", "regex_pattern": ANSWER}, {"function": "take_first"},
            ]}],
            "metric_list": [_mean("exact_match")],
        },
        "zoo_texts": {
            "task": "zoo_texts", "test_split": "test", "custom_dataset": _data(texts), "doc_to_text": "",
            "doc_to_target": "text", "output_type": "loglikelihood_rolling",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        },
    }  # fmt: skip


def known_tasks(
    names: Sequence[str], tasks: dict[str, dict[str, Any]], others: Sequence[str], option: str = "tasks"
) -> list[Any]:  # fmt: skip
    """What is asked for, in the form that `simple_evaluate` takes: configurations of the zoo's, names of others; a
    pattern such as `mmlu_*` stands for several of those.

    Raises:
      InputError: a name that is not known, with the nearest one.
    """
    out = list[Any]()
    for name in names:
        found = [name] if name in others else fnmatch.filter(others, name)
        if name not in tasks and not found:
            near = difflib.get_close_matches(name, [*tasks, *others], 1, cutoff=0.5)
            meant = f"Did you mean '{near[0]}'? " if near else ""
            cure = f"{meant}`lm_eval ls tasks` lists the names, --include FOLDER adds tasks of your own"
            raise InputError(f"there is no task '{name}'", field=option, cure=cure)
        out += [tasks[name]] if name in tasks else found
    return out


def with_choices(records: Sequence[Record]) -> list[Record]:
    """Problems with four different choices: the answer, the slip, and answers of other problems of the skill. `place`:
    of the answer, which differs from problem to problem."""
    out = []
    for number, one in enumerate(records):
        others = [other["answer"] for other in (*records[number:], *records[:number]) if other["skill"] == one["skill"]]
        wrong = [text for text in dict.fromkeys([one["slip"], *others]) if text != one["answer"]][: CHOICES - 1]
        place = number % (len(wrong) + 1)
        out.append({**one, "choices": [*wrong[:place], one["answer"], *wrong[place:]], "place": place})
    return out


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _data(sides: dict[str, list[Record]]) -> Any:
    def custom_dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {side: Dataset.from_list(records) for side, records in sides.items()}

    return custom_dataset
