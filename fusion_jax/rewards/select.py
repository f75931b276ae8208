"""From scored responses to preferences: the best source response, the target's best and worst, quadruples.

WRPO spec section 3 (stages 4, 8, 9) and section 11 (ties, non-finite scores, missing responses).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import xxhash

from fusion_jax import arguments
from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record, Records, numbered


def by_prompt(responses: Sequence[Record]) -> dict[str, list[Record]]:
    """Responses of each prompt, in the order of first appearance.

    Raises:
      InputError: two prompts under one id.
    """
    out: dict[str, list[Record]] = defaultdict(list)
    for record in arguments.records(responses, "responses"):
        same = out[record["prompt_id"]]
        if same and same[0]["prompt"].strip() != record["prompt"].strip():
            raise _two_prompts(record["prompt_id"], same[0]["prompt"], record["prompt"])
        same.append(record)
    return dict(out)


def _two_prompts(identity: str, one: str, other: str, **place: Any) -> InputError:
    problem = f"{quoted(identity)} stands for two prompts, {quoted(one)} and {quoted(other)}"
    cure = "Give each prompt an id of its own, or leave the ids out"
    return InputError(problem, field="prompt_id", cure=cure, **place)


def score_with(responses: Sequence[Record], verifier: Callable[[str, str], float]) -> list[Record]:
    """Responses with a `reward` each: their own where they bring one, else the verifier's on `answer`.

    Raises:
      InputError: a response has neither a reward nor an answer to verify against.
    """
    out = []
    for number, record in numbered(responses):
        if record.get("reward") is None:
            if not isinstance(record.get("answer"), str):
                raise InputError(
                    "is missing and there is no reward", record=number, field="answer",
                    cure='Add "answer" to the prompts or responses, give rewards, or use a reward model',
                )  # fmt: skip
            record = {**record, "reward": verifier(record["response"], record["answer"])}
        out.append(record)
    return out


def usable(responses: Sequence[Record], dropped: Counter[str]) -> list[Record]:
    """Responses with text and a finite score; the others are counted."""
    kept = []
    for record in responses:
        if not record["response"].strip():
            dropped["blank response"] += 1
        elif record["reward"] is None or not math.isfinite(record["reward"]):
            dropped["reward not finite"] += 1
        else:
            kept.append(record)
    return kept


def source_names(responses: Sequence[Record]) -> list[str]:
    """The sources that wrote them, in the order of first appearance."""
    return list(dict.fromkeys(r["source_model"] for r in responses))


def best_of(responses: Sequence[Record], dropped: Counter[str], *, rank: int = 1, seed: int = 0) -> dict[str, Record]:
    """The highest-scoring response of each prompt.

    Ties go to the source whose responses to the prompt have the highest mean reward, then to a source at random by
    (seed, prompt, source), then to its earlier sample: the order in which the sources are listed favours none.

    Args:
      rank: 2 is the next best response of another text, and so on; prompts with fewer texts are counted in `dropped`.
    """
    out = {}
    for prompt, records in by_prompt(usable(responses, dropped)).items():
        of_source: dict[str, list[float]] = defaultdict(list)
        for record in records:
            of_source[record["source_model"]].append(record["reward"])
        ties = {
            name: (-math.fsum(rewards) / len(rewards), xxhash.xxh3_64_intdigest(f"{seed}/{prompt}/{name}".encode()))
            for name, rewards in of_source.items()
        }
        ranked: dict[str, Record] = {}
        for record in sorted(records, key=lambda r: (-r["reward"], ties[r["source_model"]], r["sample"])):
            ranked.setdefault(record["response"], record)
        if len(ranked) < rank:
            dropped[f"prompt: fewer than {rank} source responses"] += 1
        else:
            out[prompt] = list(ranked.values())[rank - 1]
    return out


def best_and_worst(
    responses: Sequence[Record], dropped: Counter[str], *, tolerance: float = 0.0
) -> dict[str, tuple[Record, Record]]:
    """The target's highest- and lowest-scoring response of each prompt; prompts that give no preference are dropped.

    Args:
      dropped: counts, by reason: all responses blank; fewer than two usable ones; identical ones; a tie (scores
        within `tolerance`).
    """
    out = {}
    for prompt, all_records in by_prompt(responses).items():
        records = sorted(usable(all_records, dropped), key=lambda r: r["sample"])
        if not any(r["response"].strip() for r in all_records):
            dropped["prompt: all responses blank"] += 1
            continue
        if len(records) < 2:
            dropped["prompt: fewer than two usable responses"] += 1
            continue
        if len({r["response"] for r in records}) == 1:
            dropped["prompt: identical responses"] += 1
            continue
        best = min(records, key=lambda r: -r["reward"])
        worst = min(records, key=lambda r: r["reward"])
        if best["reward"] - worst["reward"] <= tolerance or best["response"] == worst["response"]:
            dropped["prompt: tie of best and worst"] += 1
            continue
        out[prompt] = (best, worst)
    return out


def quadruples(source_best: Mapping[str, Record], target: Mapping[str, tuple[Record, Record]]) -> list[Record]:
    """Quadruples in the official schema with the rewards and the source's name beside; a missing y_ws is null."""
    out = []
    for prompt, (best, worst) in target.items():
        source = source_best.get(prompt)

        def message(record: Record | None) -> dict[str, str] | None:
            return None if record is None else {"role": "assistant", "content": record["response"]}

        out.append(
            {
                "prompt_id": prompt,
                "prompt": {"role": "user", "content": best["prompt"]},
                "chosen": [message(source), message(best)],
                "rejected": [message(worst)],
                "source_model": None if source is None else source["source_model"],
                "rewards": [None if source is None else source["reward"], best["reward"], worst["reward"]],
            }
        )
    return out


def pairs(chosen: Iterable[tuple[Record, Record]]) -> list[Record]:
    """(chosen, rejected) responses as records of a pair, with who wrote them and their rewards."""
    return [
        {
            "prompt_id": good["prompt_id"],
            "prompt": good["prompt"],
            "chosen": good["response"],
            "rejected": bad["response"],
            "source_models": [good["source_model"], bad["source_model"]],
            "rewards": [good["reward"], bad["reward"]],
        }
        for good, bad in chosen
    ]


def notes(quads: Sequence[Record]) -> Counter[str]:
    """How many quadruples have no source response, or one that scores below the target's own."""
    rewards = [q["rewards"][:2] for q in quads]
    return Counter({
        "note: no source response (alpha 0)": sum(source is None for source, _ in rewards),
        "note: source scores below target (kept)": sum(s is not None and s < best for s, best in rewards),
    })  # fmt: skip


def wins(best: Mapping[str, Record]) -> dict[str, float]:
    """Share of the prompts whose best response each source wrote."""
    counts = Counter(r["source_model"] for r in best.values())
    return {name: count / max(len(best), 1) for name, count in counts.most_common()}


def carry(
    prompts: Sequence[Record], responses: Sequence[Record], dropped: Counter[str], *, file: str | None = None
) -> list[Record]:
    """Responses to the given prompts, with what the prompts know (answer, skill) where the response lacks it.

    A response belongs to the prompt of its id or, without such a one, of its text; others are counted in `dropped`.

    Args:
      file: of the responses, for messages.

    Raises:
      InputError: no response belongs to any prompt; one has the id of another prompt, or another answer to its own.
    """
    known: dict[str, Any] = {p["prompt_id"]: p for p in prompts}
    by_text = {p["prompt"]: p["prompt_id"] for p in prompts}
    out, lines = list[Record](), list[int]()
    for number, record in numbered(responses):
        identity = record["prompt_id"] if record["prompt_id"] in known else by_text.get(record["prompt"])
        if identity is None:
            dropped["response to another prompt"] += 1
            continue
        prompt = known[identity]
        if prompt["prompt"].strip() != record["prompt"].strip():
            raise _two_prompts(identity, prompt["prompt"], record["prompt"], file=file, record=number)
        brought = {k: v for k, v in record.items() if v is not None}
        if "answer" in brought and prompt.get("answer") not in (None, brought["answer"]):
            problem = f"is {quoted(brought['answer'])}, that of the prompt is {quoted(prompt['answer'])}"
            raise InputError(problem, file=file, record=number, field="answer", cure="Leave one of the two out")
        out.append({**prompt, **brought, "prompt_id": identity})
        lines.append(number)
    if not out:
        raise InputError(
            "no response belongs to any of the prompts", field="prompt_id",
            cure='Give both files the same "prompt_id" or the same "prompt"',
        )  # fmt: skip
    return Records(out, lines)
