"""What fusions through preferences share before the last training: prompts, responses, SFT, or ready preferences.

WRPO, FuseChat-3.0, InfiFPO and FuseRL differ in which responses they learn from and in their losses; the stages before
the last ones are here (those are in `runs.policy`), with what a command line may not ask for and what a plan computes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split_sizes
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.plan.parts import Part, Sampling, Training, every
from fusion_jax.plan.programs import Start
from fusion_jax.rewards import select
from fusion_jax.runs.checks import check_names, check_skipped
from fusion_jax.runs.counts import SHARED
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.domains import split_prompts
from fusion_jax.runs.policy import Policy, PreferenceSettings
from fusion_jax.runs.sources import Sources, eval_set_of, source_parts
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective


@dataclass(frozen=True)
class Preferences:
    """What the last training begins with: the policy, behind its SFT if it had any, and what it learns, as records and
    as rows. told: parts of the report about them."""

    policy: Policy
    records: Sequence[Record]
    rows: list[Row]
    told: Sequence[str] = ()


@dataclass(frozen=True)
class Begun:
    """A run whose prompts are known and whose target, the policy as it is, is loaded and judged.

    first, second: the prompts for SFT and for preferences. given: ready responses, if there are any.
    """

    policy: Policy
    sources: Sources
    prompts: list[Record]
    first: list[Record]
    second: list[Record]
    given: list[Record]

    def responses(self) -> list[Record]:
        """Every source's responses to all prompts, with rewards."""
        return self.sources.responses(self.prompts, self.given)

    def own_responses(
        self,
        policy: Policy,
        prompts: Sequence[Record],
        how: SampleSettings | None = None,
        *,
        made_from: Sequence[str] | None = None,
    ) -> list[Record]:
        """target_responses.jsonl: what the policy answers, with rewards; sampled as the sources are, or by `how`."""
        sampled = functools.partial(self.sources.sampled, policy.model, "target", prompts, how)
        return policy.desk.records("target_responses.jsonl", sampled, made_from=made_from)

    def to_first(self, responses: Sequence[Record]) -> list[Record]:
        """Those that answer a prompt for SFT."""
        return _to(responses, self.first)

    def to_second(self, responses: Sequence[Record]) -> list[Record]:
        """Those that answer a prompt for preferences."""
        return _to(responses, self.second)

    def best(self, file: str, found: Mapping[str, Record]) -> dict[str, Record]:
        """The best response to each prompt by the prompt's id, kept in a file."""
        return {record["prompt_id"]: record for record in self.policy.desk.records(file, found.values)}

    def taught(self, best: Mapping[str, Record], *, made_from: str) -> Policy:
        """The policy after SFT on sft.jsonl, the best responses to the prompts for SFT.

        Raises:
          InputError: there are prompts for SFT and no response to any of them.
        """
        desk = self.policy.desk
        lessons = desk.records(
            "sft.jsonl", lambda: [best[p["prompt_id"]] for p in self.first if p["prompt_id"] in best],
            made_from=["prompts.jsonl", made_from],
        )  # fmt: skip
        if self.first and not lessons:
            desk.check_enough(0, self.policy.settings.sft, "--sft")
        return self.tuned(lessons)

    def tuned(self, lessons: Sequence[Record]) -> Policy:
        """The policy after SFT on the records of sft.jsonl; as it is without any."""
        if not lessons:
            return self.policy
        return self.policy.tuned(_lessons(self.policy.settings, self.policy.desk, lessons, "sft.jsonl"))

    def rows(self, name: str, records: Sequence[Record], kind: str) -> list[Row]:
        """The preferences of NAME.jsonl, see `Desk.rows`.

        Raises:
          InputError: those that are not held out do not fill a batch.
        """
        self.policy.check_enough(len(records))
        on_bad = self.policy.settings.on_bad
        return self.policy.desk.rows(name, records, kind, file=f"{name}.jsonl", on_bad=on_bad)


def ready(s: PreferenceSettings, desk: Desk, file: str, kind: str, stage: str, sft_data: str = "") -> Preferences:
    """A run on ready preferences; all records are looked at before a model is loaded.

    Args:
      kind: of the file's records, see `data.records.parse_rows`; stage: what counts are called.
      sft_data: file of records that the target learns first, or ""; those to prompts of the preferences are left out.
    """
    records = load_records(file)
    tests = eval_set_of(s, own_data=True)
    rows = desk.rows(stage, records, kind, file=file, on_bad=s.on_bad)
    desk.check_enough(s.trained_on(len(rows)), s.preference, "--preference")
    lessons = _lessons(s, desk, load_records(sft_data), sft_data, beside=rows) if sft_data else []
    if sft_data and s.text.packing == "none":
        desk.check_enough(len(lessons), s.sft, "--sft")
    Sources(s, desk, tests, s.preference).check_prompts((), ())
    target = desk.target(s.target, s.preference, tests, prompts=[row.messages[-1]["content"] for row in rows])
    return Preferences(Policy(s, desk, tests, target).tuned(lessons), records, rows)


REPEATED = "prompt: the same text under another id"


def _distinct(prompts: Sequence[Record], dropped: Counter[str]) -> list[Record]:
    """The prompts, each text once: under two ids it could be in both parts."""
    out: dict[str, Record] = {}
    for prompt in prompts:
        out.setdefault(prompt["prompt"].strip(), prompt)
    dropped[REPEATED] += len(prompts) - len(out)
    return list(out.values())


def _to(responses: Sequence[Record], prompts: Sequence[Record]) -> list[Record]:
    asked = {prompt["prompt_id"] for prompt in prompts}
    return [r for r in responses if r["prompt_id"] in asked]


def begin(
    s: PreferenceSettings, desk: Desk, *, target_asked: Sequence[str] = (), shares: Mapping[str, float] = {}
) -> Begun:
    """Prompts, their two parts, the target.

    Args:
      target_asked: which of the parts "first" and "second" the target itself is asked.
      shares: for SFT, of the prompts of some domains; the others are split by `sft_share`.

    Raises:
      InputError: too few prompts for a batch of either stage, or prompts that leave a model no room for an answer.
    """
    tests = eval_set_of(s, own_data=bool(s.prompts or s.responses))
    sources = Sources(s, desk, tests, s.preference)
    given = sources.given()
    prompts = desk.records(
        "prompts.jsonl", lambda: _enough(s, desk, sources.prompts(given, target_asked=bool(target_asked)), shares)
    )
    prompts = _distinct(prompts, desk.counter("prompts"))
    first, second = split_prompts(prompts, s.sft_share, shares, s.seed)
    parts = {"first": first, "second": second}
    sources.check_prompts(prompts, [prompt for name in target_asked for prompt in parts[name]])
    target = desk.target(s.target, s.preference, tests, prompts=[prompt["prompt"] for prompt in prompts])
    return Begun(Policy(s, desk, tests, target), sources, prompts, first, second, given)


def _enough(s: PreferenceSettings, desk: Desk, prompts: list[Record], shares: Mapping[str, float]) -> list[Record]:
    """The prompts, if they are enough for both stages."""
    first, second = map(len, split_prompts(prompts, s.sft_share, shares, s.seed))
    if first and s.text.packing == "none":
        desk.check_enough(first, s.sft, "--sft", counts=False)
    desk.check_enough(s.trained_on(second), s.preference, "--preference", counts=False)
    return prompts


def _lessons(
    s: PreferenceSettings, desk: Desk, taught: Sequence[Record], file: str, *, beside: Sequence[Row] = ()
) -> list[Row]:
    """Records for SFT as rows, without those to conversations of the preferences `beside`, which are counted."""
    rows, preferred = desk.rows("sft", taught, "sft", file=file, on_bad=s.on_bad), {_asked(row) for row in beside}
    kept = [row for row in rows if _asked(row) not in preferred]
    desk.counts["sft"].update({SHARED: len(rows) - len(kept), "used": len(kept) - len(rows)})
    return kept


def _asked(row: Row) -> tuple[str, ...]:
    return tuple(message["content"].strip() for message in row.messages)


def wins(best: Mapping[str, Record]) -> list[str]:
    """Who wrote the best source response, for the report."""
    shares = [{"source": name, "share": f"{share:.3f}"} for name, share in select.wins(best).items()]
    return ["## Who wrote the best source response", markdown_table(shares)] if shares else []


def check_begin(
    s: PreferenceSettings,
    names: Sequence[str],
    *,
    ready: tuple[str, str] = ("", ""),
    skipped: Mapping[str, object] = {},
    sft_data: str = "",
) -> None:
    """Refuse options that do not go together with where a run begins.

    Args:
      names: what the report calls the run's own models; no source that is asked may be called so.
      ready: the option of ready preferences, without its dashes, and the file. skipped: what else they skip, see
        `check_skipped`. sft_data: file of records for SFT, which only a run on ready preferences takes.
    """
    option, file = ready
    if file:
        always = {"responses": s.responses, "prompts": s.prompts, "reward-model": s.reward_model}
        check_skipped({**always, **skipped}, f"--{option}")
    elif sft_data:
        problem = f"belongs to --{option}; else SFT learns the best source responses"
        cure = f"Leave it out, give --{option}, or train on it first with experiments/sft.py"
        raise InputError(problem, field="--sft-data", cure=cure)
    if not (file or s.responses):
        check_names(s.sources, names)


def planned(
    s: PreferenceSettings,
    objective: Objective,
    *,
    ready: str = "",
    sft_data: str = "",
    sft: Objective | None = None,
    asked: SampleSettings | None = None,
) -> tuple[Training, *tuple[Part, ...]]:
    """What a run computes: the training on preferences, then what comes before it. What is trained to compare takes no
    more, nor the sources' sampling.

    Args:
      objective: of the training on preferences. ready: file of ready ones, before which only SFT on `sft_data` is
        left. sft: the objective of the first stage, where it is not plain SFT. asked: how the target is sampled on the
        prompts for preferences.
    """
    share = 0.0 if ready else s.sft_share
    start: Start = "float32" if share or sft_data else "bfloat16"  # of weights behind a training, of a folder's
    last = Training(
        objective.name, s.target, objective, s.preference, s.text.tokens.max_length, "--preference", start=start,
        records=lambda prompts: s.trained_on(split_sizes(prompts, share)[1]),
    )  # fmt: skip
    if ready:
        return (last, sft_part(s, every, objectives.sft())) if sft_data else (last,)
    out = list[Part]()
    if share:
        out.append(sft_part(s, lambda prompts: split_sizes(prompts, share)[0], sft or objectives.sft()))
    out += source_parts(s, s.preference, "--preference")
    if asked is not None:
        second = lambda prompts: split_sizes(prompts, share)[1]  # noqa: E731
        out.append(Sampling("sampling the target", s.target, asked, records=second, kept=start))
    return last, *out


def sft_part(s: PreferenceSettings, records: Callable[[int], int], objective: Objective) -> Training:
    """The SFT stage."""
    return Training(
        "SFT", s.target, objective, s.sft, s.text.tokens.max_length, "--sft", packing=s.text.packing, records=records
    )  # fmt: skip
