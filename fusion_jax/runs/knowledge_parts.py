"""What a run of KCA begins with: what goes together, what is planned, and the models and instances that it opens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from fusion_jax.asking.contract import Answerer
from fusion_jax.asking.deferred import Deferred
from fusion_jax.asking.local import identity_of
from fusion_jax.data.clip import Clip
from fusion_jax.errors import InputError
from fusion_jax.evals.hallucination.overlap import check_rouge
from fusion_jax.kca.papers import Paper, read_paper
from fusion_jax.kca.records import Instance
from fusion_jax.kca.template import SYSTEM, with_template
from fusion_jax.models.folder import Model
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.parts import Part, Sampling, Training
from fusion_jax.plan.runs import Ask, Planned
from fusion_jax.runs.checks import check_arms, model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fact_world import POSITIONS, helper_of, instances_of, paper_of, raised, tokenizer_of
from fusion_jax.runs.helpers import HelperSettings
from fusion_jax.runs.knowing import Knowing, KnowingSettings, check_helped, read_side
from fusion_jax.sampling.generate import SampleSettings, encoded_prompts
from fusion_jax.train import objectives
from fusion_jax.zoo import model_path
from fusion_jax.zoo.facts import World, world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Opened(NamedTuple):
    """base: the model that is examined and tuned; knowing: stages 1 to 5; sides: "train" and the test sets; judge: who
    grades, if anybody does; world: of the miniature."""

    base: Model
    knowing: Knowing
    sides: dict[str, list[Instance]]
    judge: Answerer | None
    world: World | None


def check_again(s: KnowingSettings) -> None:
    """Refuse a second exam that would be the first one once more, and agree with it.

    Raises:
      InputError: names the option.
    """
    if not s.again:
        return
    if not s.base:
        problem = "is given without --base: the miniature's helper makes the same exam of a note each time"
        raise InputError(problem, field="--again", cure="Leave it out, or give --base MODEL and a helper")
    if not s.helper.given:
        raise InputError("needs a helper", field="--again", cure="Give --helper.model or --helper.server")
    if not s.helper.temperature:
        problem = "is given, and at a temperature of 0 the helper makes the same exam of a note each time"
        raise InputError(problem, field="--again", cure="Give --helper.temperature 1")


def check_knowing(s: KnowingSettings) -> None:
    """Refuse what does not go together.

    Raises:
      InputError: names the option.
    """
    check_arms(s.arms)
    if s.result not in s.arms:
        raise InputError(f"'{s.result}' is none of --arms", field="--result", cure=f"Choose one of {', '.join(s.arms)}")
    s.helper.check("--helper")
    s.judge.check("--judge")
    check_again(s)
    if s.rouge:
        check_rouge()
    if s.base and not (s.instructions or s.exams):
        cure = "Give --instructions FILE, --exams FILE, or both"
        raise InputError("is missing beside --base", field="--instructions", cure=cure)
    if not s.base:
        if s.text.tokens.max_length > POSITIONS:
            raise InputError(
                f"is missing: the miniature has {POSITIONS} positions", field="--base", cure="Give a folder"
            )
        given = {"instructions": s.instructions, "exams": s.exams, "tests": s.tests, "exam.exemplars": s.exam.exemplars,
                 "helper.model": s.helper.given, "judge.model": s.judge.given}  # fmt: skip
        for option, value in given.items():
            if value:
                problem = "is given without --base: the miniature knows the words of its own world only"
                raise InputError(problem, field=f"--{option}", cure="Give --base MODEL, too")
    if s.helpfulness and s.base and not s.judge.given:
        raise InputError("needs a judge", field="--helpfulness", cure="Give --judge.model or --judge.server")


def opened(s: KnowingSettings, desk: Desk) -> Opened:
    """The user's models and files, or the miniature's, made in the run."""
    if not s.base:
        made = world(desk.seed, s.world)
        check_refusal(s, tokenizer_of([s.refusal, SYSTEM]))
        base, who = with_template(raised(s, desk, made), s.template), helper_of(made, s.compat)
        sides = {"train": instances_of(made, "train"), "test": instances_of(made, "test")}
        return Opened(base, Knowing(desk, s, paper_of(made), who), sides, who, made)
    sides = read_side(s, desk, [s.instructions] if s.instructions else [], "train") | read_side(
        s, desk, s.tests, "test"
    )
    check_helped(s, sides)
    paper = read_paper(s.exam.exemplars, Counter()) if s.exam.exemplars else Paper()
    base = with_template(desk.load(s.base, s.train), s.template)
    assert base.tokenizer is not None  # `with_template` has looked
    check_refusal(s, base.tokenizer)
    sides = {name: some if name == "train" else answerable(s, desk, base, name, some) for name, some in sides.items()}
    knowing = Knowing(desk, s, paper, asked_later(s.helper, desk, "--helper"))
    return Opened(base, knowing, sides, asked_later(s.judge, desk, "--judge"), None)


def asked_later(who: HelperSettings, desk: Desk, option: str) -> Answerer | None:
    """A helper or a judge. A model of ours is loaded when something is asked that the log does not hold, so that it
    does not lie beside the base model for nothing."""
    if not who.model:
        return who.answerer(desk, option)
    identity = identity_of(model_path(who.model, f"{option}.model"), model_name(who.model))

    def load() -> Answerer:
        found = who.answerer(desk, option)
        assert found is not None  # a model is given
        return found

    return Deferred(identity, load)


def check_refusal(s: KnowingSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse answers without room for the sentence that is learnt to refuse by.

    Raises:
      InputError: names the option.
    """
    if "refusal" not in s.arms:
        return
    length = len(tokenizer(s.refusal, add_special_tokens=False)["input_ids"])
    if length > s.max_new_tokens:
        problem = f"{s.max_new_tokens} tokens do not hold the sentence of --refusal, which has {length}"
        raise InputError(problem, field="--max-new-tokens", cure=f"Set it to more than {length}")


def answerable(s: KnowingSettings, desk: Desk, base: Model, name: str, some: list[Instance]) -> list[Instance]:
    """Test instances that leave the model room for an answer; the others are counted."""
    assert base.tokenizer is not None  # `with_template` has looked
    room, clip = base.config.max_positions - s.max_new_tokens, Clip(base.tokenizer, base.config.max_positions)
    short = [one for one in some if not clip.too_long(one.source.instruction)]
    lengths = [len(ids) for ids in encoded_prompts(base.tokenizer, [one.source.instruction for one in short])]
    out = [one for one, length in zip(short, lengths, strict=True) if length <= room]
    desk.counter(f"{name}, file")["left out: no room for an answer"] += len(some) - len(out)
    if not out:
        problem = f"no instance of {name} leaves room for {s.max_new_tokens} new tokens"
        raise InputError(problem, field="--max-new-tokens", cure="Lower it, or give shorter instructions")
    return out


def knowing_parts(s: KnowingSettings) -> list[Part]:
    """What the run computes, as far as it is planned: the tuning and the answers, and replies of models of ours.
    Without a folder the former are those of the public model that the preset is called after; the miniature is not
    planned."""
    tokens = s.text.tokens.max_length
    how = SampleSettings(0.0, 1.0, num_samples=1, max_new_tokens=s.max_new_tokens, batch_size=s.answer_batch)
    parts = (
        Training("tuning, each arm", s.base, objectives.sft(), s.train, tokens, named="--base"),
        Sampling("answers", s.base, how, "--answer-batch", "--base", kept="float32"),
    )
    return [*(part if s.base else OfPreset(part) for part in parts), *_replying(s.helper, "--helper", "each stage"),
            *_replying(s.judge, "--judge", "each arm")]  # fmt: skip


def _replying(who: HelperSettings, option: str, when: str) -> list[Part]:
    """Replies of a helper or a judge; nothing where a server gives them. when: it is asked, for the title."""
    if not who.model:
        return []
    how = SampleSettings(
        who.temperature, 1.0, num_samples=1, max_new_tokens=who.max_tokens, batch_size=who.batch_size
    )  # fmt: skip
    title = f"{option.removeprefix('--')}'s replies, {when}"
    return [Sampling(title, who.model, how, f"{option}.batch-size", f"{option}.model")]


@dataclass(frozen=True)
class OfPreset:
    """A part without a folder."""

    part: Training | Sampling

    def check(self) -> None:
        """Nothing has to fit: the run is the miniature."""

    def plan(self, ask: Ask) -> list[Planned]:
        return replace(self.part, model=ask.preset).plan(ask) if ask.preset in PUBLIC else []
