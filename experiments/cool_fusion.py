"""Cool-Fusion: several models write one answer together, without training (arXiv 2407.19807).

    python experiments/cool_fusion.py                                      # three miniatures, a CPU, a minute
    python experiments/cool_fusion.py --preset gsm8k --sources MODEL1 MODEL2 MODEL3 --test-prompts gsm8k.jsonl \\
        --out runs/cool

Each model writes greedily up to the next place where every tokenizer can end a word; all models say how probable each
segment is, by perplexity; the one with the lowest mean is everybody's text (cool). Whole answers can be ranked in the
same way: those of each model alone (rerank), and with them the one that was written together (cool_rerank). Models
exchange text and one number a segment, so that architectures, vocabularies and chat templates may differ.

Data: prompts, JSON lines with "prompt" and "answer". Hardware and time: `tiny` 2 CPU cores, a minute; `gsm8k` is for an
accelerator a model (not timed yet). Result: accuracy of each model and of each way to fuse them, who won how many
segments, passes a token; answers/*.jsonl. Published: 74.7 (cool), 77.8 (rerank), 81.2 (cool_rerank) where the best of
three alone has 69.1; a replication found cool below the better of two unequal models. docs/cool_fusion.md has ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fusion_jax.cool.answers import answers, check_prompts
from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source, sources_of
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import load
from fusion_jax.options import Folder, Models
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.runs.checks import check_names, model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import JudgedSettings, conduct
from fusion_jax.runs.prompts import eval_set
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.together import FUSED, answers_by, as_record, graded, report
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sampling.sizes import chunks
from fusion_jax.settings import bounded
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import Problems, problems

AT_ONCE = 256  # of a file of the run: what a kill loses


@dataclass(frozen=True)
class Settings(JudgedSettings):
    """Models, prompts with answers, and how the models agree."""

    basic: ClassVar = (
        "sources", "test_prompts", "accuracy", "chat", "out", "resume", "seed", "seeds", "cool.combine", "cool.closed",
        "cool.segment_tokens", "cool.max_new_tokens", "cool.stop_strings", "cool.batch_size", "shortest",
    )  # fmt: skip

    out: Folder = "runs/cool_fusion"
    sources: Models = ("zoo:llama-source", "zoo:qwen-sentence", "zoo:gemma-sentence")
    """Models that write together: Hugging Face folders, GGUF files, or zoo:NAME."""
    problems: Problems = "skills"
    """The zoo's problems, without --test-prompts."""
    chat: bool = True
    """Whether prompts go through each model's own chat template; else they are continued as they stand."""
    shortest: bool = False
    """Whether answers are written also with segments that end where the model that wrote them can end a word."""
    cool: CoolSettings = CoolSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "test_per_skill", least=1)


PRESETS = {
    "tiny": Settings(test_per_skill=30, cool=CoolSettings(max_segments=32, max_new_tokens=28, batch_size=64)),
    "gsm8k": Settings(accuracy="gsm8k", cool=CoolSettings(batch_size=16)),
}


def main(s: Settings) -> None:
    conduct(__file__, "Cool-Fusion", s, PRESETS, fuse, parts, check=check)


def check(s: Settings) -> None:
    """Refuse what would fail later."""
    if not s.sources:
        raise InputError("there is none", field="--sources", cure="Give two models or more")
    check_names(s.sources, (*FUSED, "together"), "--sources")
    if s.cool.mode != "cool_rerank":
        problem = "all ways to fuse are compared here, from one run"
        raise InputError(problem, field="--cool.mode", cure="Leave it out; fj.fuse_generate takes a mode")


def fuse(s: Settings, desk: Desk) -> Measures:
    """Every model alone, all together, and the best of these by all models' perplexity."""
    names, verify = [model_name(source) for source in s.sources], verifier(s.accuracy)
    prompts = eval_set(s, problems(s.problems, s.test_per_skill, split="test", seed=s.seed), chat=s.chat).prompts
    sources = loaded(s, desk)
    check_prompts(sources, [one["prompt"] for one in prompts], s.cool, chat=s.chat, file=s.test_prompts or None)
    records: list[Record] = []
    for number, some in enumerate(chunks(list(prompts), AT_ONCE)):
        told = partial(answered, s, desk, sources, some)
        records += desk.records(f"fused/{number:03}.jsonl", told, made_from=[])
    found = answers_by(records, names)
    if s.shortest:
        own = desk.records("shortest.jsonl", lambda: shortest(s, sources, prompts), made_from=[])
        found = {name: found[name] for name in names} | {"cool_shortest": [one["text"] for one in own]} | found
    return report(desk, {n: kept(desk, n, graded(n, prompts, found[n], verify)) for n in found}, names, records)


def loaded(s: Settings, desk: Desk) -> list[Source]:
    """The models, each on its share of the devices."""
    if len(s.sources) == 1:
        desk.run.log("one model alone: what it writes is fused with nothing")
    with desk.run.phase("loading"):
        models = {model_name(path): load(model_path(path)) for path in s.sources}
        return sources_of(models, chat=s.chat)


def answered(s: Settings, desk: Desk, sources: Sequence[Source], prompts: Sequence[Record]) -> list[Record]:
    """What the models answer to some prompts, alone and together; their number is that of the answers together."""

    def told(done: int) -> None:
        desk.run.heartbeat("answers written together", done, len(prompts))

    found = answers(sources, [prompt["prompt"] for prompt in prompts], s.cool, chat=s.chat, progress=told)
    return [as_record(prompt, one, sources) for prompt, one in zip(prompts, found, strict=True)]


def parts(s: Settings) -> list[Part]:
    """What can be planned of the run: the answers of each model alone, which need about what the others need."""
    how = SampleSettings(0.0, 1.0, num_samples=1, max_new_tokens=s.cool.max_new_tokens, batch_size=s.cool.batch_size)
    return [Sampling(f"{model_name(path)} alone", path, how, "--sources", "--sources") for path in s.sources]


def shortest(s: Settings, sources: Sequence[Source], prompts: Sequence[Record]) -> list[Record]:
    """Answers whose segments end where the model that wrote them can end a word."""
    how = dataclasses.replace(s.cool, mode="cool_shortest")
    found = answers(sources, [prompt["prompt"] for prompt in prompts], how, chat=s.chat)
    return [{"prompt": prompt["prompt"], "text": one.text} for prompt, one in zip(prompts, found, strict=True)]


def kept(desk: Desk, name: str, records: list[Record]) -> list[Record]:
    """An arm's answers, in a file of their own."""
    return desk.records(f"answers/{name}.jsonl", lambda: records)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
