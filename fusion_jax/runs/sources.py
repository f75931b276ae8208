"""How a fusion through preferences begins: prompts, and the responses of every source with rewards."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusion_jax.data.asked import check_answers, parse_prompts, parse_responses
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.models.int8 import Weights
from fusion_jax.options import File, ModelPath, Models, RewardModel
from fusion_jax.plan import fits
from fusion_jax.plan.parts import Part, Rewarding, Sampling
from fusion_jax.rewards import select
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.rewards.verifiers import VerifierName, verifier
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.runs.prompts import eval_set
from fusion_jax.sampling.generate import SampleSettings, load_to_sample
from fusion_jax.settings import bounded
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import Problems, problems

KNOWN = ("prompt_id", "prompt", "answer", "skill", "domain", "dataset", "tests")
"""What a ready response may say of its prompt."""


@dataclass(frozen=True)
class SourceSettings(EvaluatedSettings, JudgedSettings):
    """A target, sources that it learns from, prompts, and how responses to them are sampled and rewarded."""

    target: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    sources: Models = ("zoo:llama-source", "zoo:qwen-source", "zoo:gemma-source")
    """Models to learn from: folders, or zoo:NAME."""
    source_weights: Weights = "stored"
    """How the layers' matrices of the sources are held: as their files have them (stored), or rounded to int8, which
    takes half the memory of bfloat16 and half the time to read for each token."""
    prompts: File = ""
    """JSON lines with "prompt" and, for a verifier, "answer"; without, the zoo's problems."""
    problems: Problems = "skills"
    """The zoo's problems, which stand in for data that are not given: skills, or facts about plants."""
    prompts_per_skill: int = 160
    """The zoo's problems of each skill to train on."""
    judged_on: Literal["test", "validation"] = "test"
    """Which of the zoo's held-out problems: validation is for choosing settings, test for the result (plants only)."""
    eval_samples: int = 0
    """Test answers sampled to each prompt with temperature 0.8, for their mean reward; 0: the greedy one only."""
    responses: File = ""
    """Ready responses of the sources, instead of sampling them."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    sample: SampleSettings = SampleSettings(max_new_tokens=28, batch_size=64)
    source_temperature: tuple[float, ...] = ()
    """Temperature of each source, in their order; without, sample.temperature."""
    source_top_p: tuple[float, ...] = ()
    """Share of the probability mass of each source, in their order; without, sample.top_p."""
    source_repetition_penalty: tuple[float, ...] = ()
    """Repetition penalty of each source, in their order; without, sample.repetition_penalty."""
    verifier: VerifierName = "answer"
    """Rule that gives rewards, unless there is a reward model."""
    reward_model: RewardModel = ""
    """A model with one score that gives the rewards: a folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "prompts_per_skill", least=1)
        bounded(self, "eval_samples", least=0)
        if self.judged_on == "validation" and (self.test_prompts or self.problems != "plants"):
            problem = "is a side of the zoo's plants, which are not asked"
            raise InputError(problem, field="judged_on", cure="Leave it out, or judge on --problems plants")
        for name in ("temperature", "top_p", "repetition_penalty"):
            given = getattr(self, f"source_{name}")
            if given and len(given) != len(self.sources):
                problem = f"has {len(given)} values for {len(self.sources)} sources"
                raise InputError(problem, field=f"source_{name}", cure="Give one for each source, or none")
        _ = [self.sampling_of(place) for place in range(len(self.sources))]  # have the ranges

    def sampling_of(self, place: int) -> SampleSettings:
        """How the source at a place of the list is sampled."""
        own = {name: getattr(self, f"source_{name}") for name in ("temperature", "top_p", "repetition_penalty")}
        return dataclasses.replace(self.sample, **{name: values[place] for name, values in own.items() if values})


def eval_set_of(s: SourceSettings, *, own_data: bool) -> EvalSet:
    """Test prompts with answers: the user's; none beside own data without them; otherwise the zoo's problems."""
    wanted = s.test_per_skill and not (own_data or s.test_prompts)
    held_out = problems(s.problems, s.test_per_skill, split=s.judged_on, seed=s.seed) if wanted else []
    return dataclasses.replace(eval_set(s, held_out), samples=s.eval_samples, seed=s.seed)


@dataclass(frozen=True)
class Sources:
    """Sources at a desk. train: of the stage on whose mesh the reward model lies."""

    settings: SourceSettings
    desk: Desk
    tests: EvalSet
    train: TrainSettings

    @property
    def names(self) -> list[str]:
        """What the sources are called."""
        return [model_name(source) for source in self.settings.sources]

    def given(self) -> list[Record]:
        """Ready responses, where the settings name a file of them."""
        file = self.settings.responses
        return parse_responses(load_records(file), file=file, skipped=self._skipped("source responses")) if file else []

    def _skipped(self, what: str) -> Counter[str] | None:
        """Where broken records are counted; None where they are errors."""
        return self.desk.counter(what) if self.settings.on_bad == "skip" else None

    def prompts(self, given: Sequence[Record], *, target_asked: bool = True) -> list[Record]:
        """Prompts to train on, with what the records of each know: those of a file, of ready responses, or the zoo's.

        Args:
          target_asked: whether the target's own responses are to be rewarded.

        Raises:
          InputError: a record without the answer that the verifier needs.
        """
        s = self.settings
        if not (s.prompts or given):
            return problems(s.problems, s.prompts_per_skill, split="train", seed=s.seed + 1000)
        records = self._asked() if s.prompts else given
        rewarded = bool(given) and all(response.get("reward") is not None for response in given)
        if not s.reward_model and (target_asked or not rewarded):
            whose = "the target's responses" if target_asked else "responses without a reward"
            cure = f"Add it, for {whose} are verified against it, or give a --reward-model"
            check_answers(records, file=s.prompts or s.responses, cure=cure)
        known: dict[str, Record] = {}
        for record in records:
            kept = record if s.prompts else KNOWN
            known.setdefault(record["prompt_id"], {}).update({k: record[k] for k in kept if record.get(k) is not None})
        return list(known.values())

    def _asked(self) -> list[Record]:
        file = self.settings.prompts
        return parse_prompts(load_records(file), file=file, skipped=self._skipped("prompts"))

    def responses(self, prompts: Sequence[Record], given: Sequence[Record]) -> list[Record]:
        """Every source's responses with rewards, and the sources' accuracy."""
        s, desk = self.settings, self.desk
        if given:
            carried = select.carry(prompts, given, desk.counter("source responses"), file=s.responses)
            return desk.records("responses.jsonl", lambda: self.rewarded(carried))
        return [r for place in range(len(s.sources)) for r in self._of(place, prompts)]

    def _of(self, place: int, prompts: Sequence[Record]) -> list[Record]:
        name, sample = self.names[place], self.settings.sampling_of(place)
        folder, file = model_path(self.settings.sources[place]), f"responses/{name}.jsonl"
        weights = self.settings.source_weights
        model = functools.cache(
            lambda: load_to_sample(folder, sample.mesh_tensor, "--sample.mesh-tensor", weights=weights)
        )
        found = self.desk.records(
            file, lambda: self.sampled(model(), name, prompts, sample), made_from=["prompts.jsonl"]
        )
        self.desk.judge(name, model, self.tests, made_from=[])
        return found

    def sampled(
        self, model: Model, name: str, prompts: Sequence[Record], how: SampleSettings | None = None
    ) -> list[Record]:
        """A model's responses with rewards; sampled as the settings say, or as `how` does."""
        return self.rewarded(self.desk.sampled(model, name, prompts, how or self.settings.sample))

    def rewarded(self, responses: Sequence[Record]) -> list[Record]:
        """Responses with rewards: their own, else the reward model's or, without one, the verifier's."""
        s = self.settings
        if not s.reward_model:
            with self.desk.run.phase("scoring"):
                return select.score_with(responses, verifier(s.verifier))
        missing = [r for r in responses if r.get("reward") is None]
        if not missing:
            return list(responses)
        judge = self.desk.load(s.reward_model, self.train)
        with self.desk.run.phase("scoring"):
            fresh = iter(score_responses(judge, missing, mesh=compute_for(self.train).mesh))
        return [r if r.get("reward") is not None else next(fresh) for r in responses]

    def check_prompts(self, prompts: Sequence[Record], own: Sequence[Record]) -> None:
        """Refuse prompts that leave one of the models no room for an answer.

        Args:
          prompts: that the sources are asked, unless their responses are there. own: that the target is asked.
        """
        s = self.settings
        sources = () if s.responses or not prompts else s.sources
        for model, asked in [(s.target, own), *((source, prompts) for source in sources)]:
            folder = model_path(model)
            fits.check_prompts(folder, asked, s.sample.max_new_tokens, "--sample.max-new-tokens")
            fits.check_prompts(folder, self.tests.prompts, s.eval_new_tokens, "--eval-new-tokens")
        if s.reward_model:
            judge, answered = model_path(s.reward_model), prompts if sources else own
            fits.check_judged(judge, answered, s.sample.max_new_tokens, "--sample.max-new-tokens")


def source_parts(s: SourceSettings, train: TrainSettings, option: str) -> list[Part]:
    """What the responses of the sources take: sampling, unless they are there, and the reward model.

    Args:
      train: the stage on whose mesh the reward model lies, and the option that sets it.
    """
    judge = [Rewarding(s.reward_model, train, option)] if s.reward_model else []
    asked = () if s.responses else s.sources
    samples = [
        Sampling(f"sampling {m}", m, s.sample, named="--sources", planned=False, weights=s.source_weights)
        for m in asked
    ]
    return [*judge, *samples]
