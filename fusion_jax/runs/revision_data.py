"""What SEFT starts from: pairs for the reviser, prompts for the policy, and what judges an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fusion_jax.data.asked import parse_prompts
from fusion_jax.data.chat import LostText
from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad, Row
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record, numbered
from fusion_jax.models.folder import Model, check_folder
from fusion_jax.options import File, ModelPath, OneOf, RewardModel
from fusion_jax.plan import fits
from fusion_jax.plan.parts import Part, Rewarding, Sampling, Training
from fusion_jax.rewards.revision import REFUSES, refuses
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.rewards.verifiers import VerifierName, verifier
from fusion_jax.runs.checks import check_names
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.evolving import EvolutionSettings
from fusion_jax.runs.examining import Judge
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.runs.prompts import eval_set
from fusion_jax.runs.revising import Pair, RevisingSettings
from fusion_jax.runs.rounds import ON_PROMPTS, PairBaseline
from fusion_jax.settings import bounded
from fusion_jax.train import fused_objectives, objectives
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import drafts, model_path, plants

PAIRED = ("SFT", "DPO", "ORPO")  # baselines on the pairs
BASELINES = (*PAIRED, *ON_PROMPTS)


@dataclass(frozen=True)
class RevisionSettings(EvaluatedSettings, JudgedSettings):
    """A policy, a reviser, and what both learn from."""

    target: ModelPath = "zoo:plants-target"
    """Policy to improve: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    reviser: ModelPath = "zoo:plants-editor"
    """Model that becomes the reviser; it may be larger than the policy."""
    pairs: File = ""
    """Pairs (prompt, chosen, rejected) for the reviser; without, flawed answers about the zoo's plants."""
    prompts: File = ""
    """Prompts without answers for the policy; without, the zoo's plants."""
    on_bad: OnBad = "error"
    """What a broken pair does: stop the run, or be left out and counted."""
    zoo_pairs: int = 1600
    """Pairs of the zoo."""
    own_drafts: float = 0.1
    """Share of the zoo's pairs whose bad answer is the target's own."""
    judged_on: Literal["test", "validation"] = "test"
    """Which of the zoo's held-out plants: validation is for choosing settings, test for the result."""
    eval_samples: int = 0
    """Test answers sampled to each prompt with temperature 0.8, for their mean reward; 0: the greedy one only."""
    verifier: VerifierName = "fields"
    """Rule that judges drafts and revisions where a record brings an "answer", unless there is a reward model."""
    reward_model: RewardModel = ""
    """A model with one score that judges them instead: a folder."""
    baselines: tuple[Annotated[str, OneOf((*BASELINES, "none"))], ...] = ()
    """What is trained beside SEFT, to compare: on the pairs SFT, DPO, ORPO; on the prompts best-of-n (drafts chosen by
    reward), distilled (answers of --reviser as it is) and always-revise (a reviser without labels); or none."""
    drop_refusals: bool = True
    """Whether pairs are left out whose preferred answer begins as refusals do and whose other one does not."""
    text: TextSettings = TextSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    revising: RevisingSettings = RevisingSettings()
    warm_up: TrainSettings = TrainSettings()
    adapt: TrainSettings = TrainSettings()
    policy: TrainSettings = TrainSettings()
    sft: TrainSettings = TrainSettings()
    paired: TrainSettings = TrainSettings()
    dpo: PairSettings = PairSettings(beta=0.1)
    orpo: PairSettings = PairSettings(loss="orpo", beta=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "zoo_pairs", least=2)
        bounded(self, "own_drafts", least=0, most=1)
        bounded(self, "eval_samples", least=0)

    def check(self) -> None:
        """Refuse settings that do not go together.

        Raises:
          InputError: names the option that is missing or in the way.
        """
        for option, given, other in (("pairs", self.pairs, "prompts"), ("prompts", self.prompts, "pairs")):
            if given and not getattr(self, other):
                problem = f"is missing beside --{option}"
                raise InputError(problem, field=f"--{other}", cure=f"Give a file of {other}, too")
        if self.judged_on == "validation" and self.test_prompts:
            problem = "is a side of the zoo's plants, which are not asked"
            raise InputError(problem, field="--judged-on", cure="Leave it out")
        if self.text.packing != "none":
            problem = "is for documents, of which every token is learnt; SEFT learns answers"
            raise InputError(problem, field="--text.packing", cure="Leave it out")
        names = ("Target", *BASELINES, *(f"SEFT-{n + 1}" for n in range(self.evolution.rounds)))
        check_names([self.reviser], names, "--reviser")
        self._check_room()

    def _check_room(self) -> None:
        """Refuse a reviser that cannot write a revision behind the longest draft that it reads."""
        positions = check_folder(model_path(self.reviser)).max_positions
        reads, writes = self.text.tokens.max_length, self.evolution.revisions.max_new_tokens
        if reads + writes > positions:
            problem = f"{reads} tokens that it reads and {writes} of a revision exceed its {positions} positions"
            raise InputError(
                problem, file=self.reviser, field="--evolution.revisions.max-new-tokens",
                cure="Lower it or --text.tokens.max-length",
            )  # fmt: skip


def eval_set_of(s: RevisionSettings) -> EvalSet:
    """Test prompts with answers: the user's; none beside own data without them; otherwise held-out plants."""
    wanted = s.test_per_skill and not (s.pairs or s.test_prompts)
    held_out = plants.prompts(s.test_per_skill, split=s.judged_on, seed=s.seed) if wanted else []
    return dataclasses.replace(eval_set(s, held_out), samples=s.eval_samples, seed=s.seed)


def _zoo(s: RevisionSettings) -> tuple[list[Record], list[Record]]:
    """Plants for pairs and others for prompts."""
    count = s.zoo_pairs + s.evolution.rounds * s.evolution.round_prompts
    asked = plants.prompts(count, split="train", seed=s.seed + 1000)
    return asked[: s.zoo_pairs], asked[s.zoo_pairs :]


def pairs_of(s: RevisionSettings, desk: Desk, target: Model) -> list[Pair]:
    """The pairs, in pairs.jsonl: {"pair_id", "messages", "chosen", "rejected"} and "answer" and "flaw" where known."""
    given = _given_pairs(s, desk) if s.pairs else None  # each time: it counts what it drops
    records = desk.records("pairs.jsonl", lambda: _zoo_pairs(s, desk, target) if given is None else given, made_from=[])
    return [Pair(r["pair_id"], tuple(r["messages"]), r["chosen"], r["rejected"], r) for r in records]


def _zoo_pairs(s: RevisionSettings, desk: Desk, target: Model) -> list[Record]:
    made = drafts.pairs(_zoo(s)[0], seed=s.seed)
    own = round(s.own_drafts * len(made))
    how = dataclasses.replace(s.evolution.drafts, num_samples=1)
    for record, said in zip(made, desk.sampled(target, "own drafts", made[:own], how)):
        record |= drafts.against(said["response"], record["answer"])
    return [
        {"pair_id": r["prompt_id"], "messages": [{"role": "user", "content": r["prompt"]}],
         **{name: r[name] for name in ("chosen", "rejected", "answer", "flaw")}}
        for r in made
        if r["rejected"] and r["chosen"] != r["rejected"]
    ]  # fmt: skip


def _given_pairs(s: RevisionSettings, desk: Desk) -> list[Record]:
    """The first pair of every prompt: two would stand on both sides of a split, and contradict each other's labels."""
    records = load_records(s.pairs)
    known = {str(r.get("prompt_id", n)): r.get("answer") for n, r in numbered(records) if isinstance(r, dict)}
    every = desk.rows("pairs", records, "pair", file=s.pairs, on_bad=s.on_bad)
    answering = [row for row in every if [refuses(said or "") for said in row.responses] != [True, False]]
    firsts = dict[tuple[str, ...], Row]()
    for row in answering if s.drop_refusals else every:
        firsts.setdefault(tuple(m[part] for m in row.messages for part in ("role", "content")), row)
    rows, refusing = list(firsts.values()), len(every) - len(answering) if s.drop_refusals else 0
    desk.counter("pairs").update({
        "used": len(rows) - len(every), REFUSES: refusing,
        "another pair of its prompt": len(every) - refusing - len(rows),
    })  # fmt: skip
    if not rows:
        problem = f"in all {refusing} pairs the preferred answer refuses and the other does not"
        cure = "Give other pairs, or --drop-refusals False if refusals are to be learnt"
        raise InputError(problem, file=s.pairs, field="chosen", cure=cure)
    return [
        {"pair_id": row.name, "messages": list(row.messages), "chosen": row.responses[0], "rejected": row.responses[1],
         **({"answer": known[row.name]} if isinstance(known.get(row.name), str) else {})}
        for row in rows
    ]  # fmt: skip


def prompts_of(s: RevisionSettings, desk: Desk, pairs: Sequence[Pair], tests: EvalSet) -> list[Record]:
    """The prompts of all rounds, in prompts.jsonl, without those of pairs or of tests; what is dropped is counted.

    Raises:
      InputError: none is left, or too few for all rounds; best-of-n has nothing to choose by; a prompt leaves a model
        no room for an answer.
    """
    found = _given_prompts(s, desk, pairs, tests) if s.prompts else _zoo(s)[1]
    if "best-of-n" in s.baselines and not s.reward_model and not any(isinstance(r.get("answer"), str) for r in found):
        problem = "best-of-n has nothing to choose by: no prompt has an answer, and there is no reward model"
        raise InputError(problem, field="--baselines", cure="Give a --reward-model, or name other baselines")
    desk.note_shared(tests.prompts, [pair.messages[-1]["content"] for pair in pairs])
    limit, new = "--evolution.drafts.max-new-tokens", s.evolution.drafts.max_new_tokens
    for model in [s.target, *([s.reviser] if "distilled" in s.baselines else [])]:
        fits.check_prompts(model_path(model), found, new, limit)
    if s.reward_model:
        _check_judged(s, found, pairs)
    for model in (s.target, s.reviser):
        fits.check_prompts(model_path(model), tests.prompts, s.eval_new_tokens, "--eval-new-tokens")
    return desk.records("prompts.jsonl", lambda: found)


def _check_judged(s: RevisionSettings, prompts: Sequence[Record], pairs: Sequence[Pair]) -> None:
    """Refuse drafts, revisions and answers of pairs that are longer than the reward model reads."""
    judge, how = model_path(s.reward_model), s.evolution
    asked = [{"prompt_id": pair.name, "prompt": pair.messages[-1]["content"]} for pair in pairs]
    fits.check_judged(judge, prompts, how.drafts.max_new_tokens, "--evolution.drafts.max-new-tokens")
    limit = "--evolution.revisions.max-new-tokens"
    fits.check_judged(judge, [*prompts, *asked], how.revisions.max_new_tokens, limit)
    for field in ("chosen", "rejected"):
        both = [{**one, "prompt": f"{one['prompt']}\n{getattr(p, field)}"} for one, p in zip(asked, pairs)]
        fits.check_judged(judge, both, 0, "--pairs")


def _given_prompts(s: RevisionSettings, desk: Desk, pairs: Sequence[Pair], tests: EvalSet) -> list[Record]:
    counts = desk.counter("prompts")
    learnt = {pair.messages[-1]["content"] for pair in pairs}
    asked = {prompt["prompt"] for prompt in tests.prompts}
    out = []
    for record in parse_prompts(load_records(s.prompts), file=s.prompts):
        if record["prompt"] in learnt:
            counts["prompt that stands in a pair"] += 1
        elif record["prompt"] in asked:
            counts["prompt that is a test prompt"] += 1
        else:
            out.append(record)
    rounds, each = s.evolution.rounds, s.evolution.round_prompts
    if not out:
        raise InputError(
            "every prompt stands in a pair or is a test prompt", file=s.prompts, field="--prompts",
            cure="Give prompts that neither the reviser has learnt nor the policy is judged on",
        )  # fmt: skip
    if len(out) <= (rounds - 1) * each:
        raise InputError(
            f"{len(out)} prompts are too few for {rounds} rounds of {each}", file=s.prompts,
            field="--evolution.round-prompts",
            cure=f"Set it to {len(out) // rounds} or less" if len(out) >= rounds else "Give more prompts",
        )  # fmt: skip
    counts["prompt that no round needs"] += max(len(out) - rounds * each, 0)
    return out


def judge_of(s: RevisionSettings, desk: Desk, train: TrainSettings) -> Judge:
    """What rewards answers: the reward model, which lies on the mesh of `train`, else the verifier."""
    if s.reward_model:
        model = desk.load(s.reward_model, train)

        def scored(records: Sequence[Record]) -> list[float | None]:
            with desk.run.phase("scoring"):
                try:
                    found = score_responses(model, records, mesh=compute_for(train).mesh) if records else []
                except LostText:  # the template changes every one
                    return [None] * len(records)
                return [r["reward"] for r in found]

        return scored
    reward = verifier(s.verifier)
    return lambda records: [
        reward(r["response"], r["answer"]) if isinstance(r.get("answer"), str) else None for r in records
    ]


def on_pairs(s: RevisionSettings) -> list[PairBaseline]:
    """The baselines on pairs that are asked for."""
    known = (
        PairBaseline("SFT", "--sft", s.sft, objectives.sft()),
        PairBaseline("DPO", "--paired", s.paired, objectives.pair(s.dpo)),
        PairBaseline("ORPO", "--sft", s.sft, objectives.pair(s.orpo)),
    )
    return [one for one in known if one.name in s.baselines]


def planned(s: RevisionSettings) -> list[Part]:
    """What a run computes. The rows of a plan are pairs for the reviser and for baselines on pairs, and the prompts of
    a round for the policy."""
    length, how, adapt = s.text.tokens.max_length, s.evolution, fused_objectives.reviser(s.revising.label_weight)
    baselines = [
        Training(f"baseline {one.name}", s.target, one.objective, one.settings, length, one.option)
        for one in on_pairs(s)
    ]
    judge = [Rewarding(s.reward_model, s.adapt, "--adapt")] if s.reward_model else []
    return [
        Training("reviser, warm-up", s.reviser, objectives.sft(), s.warm_up, length, "--warm-up", "--reviser"),
        Training("reviser, labels", s.reviser, adapt, s.adapt, length, "--adapt", "--reviser", start="float32"),
        Training("policy, a round", s.target, objectives.sft(), s.policy, length, "--policy", start="float32"),
        Sampling("drafts", s.target, how.drafts, "--evolution.drafts.mesh-tensor", kept="float32"),
        Sampling("revisions", s.reviser, how.revisions, "--evolution.revisions.mesh-tensor", "--reviser"),
        *baselines, *judge,
    ]  # fmt: skip
