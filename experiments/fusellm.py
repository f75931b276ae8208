"""FuseLLM (arXiv 2401.10491): fuse what several base models predict of the same text into a target.

    python experiments/fusellm.py                                                # built-in miniatures, a CPU
    python experiments/fusellm.py --arms CLM KD EM MinED MS AvgCE --seeds 5      # the ablations
    python experiments/fusellm.py --preset llama2-7b --target LLAMA-2-7B --sources OPENLLAMA-7B-V2 MPT-7B \\
        --texts minipile.jsonl --held-out-texts valid.jsonl --out runs/a

Data: texts, JSON lines with "text" or plain lines; longer ones are cut so that no tokenizer needs more than max_length
tokens. Test prompts are {"prompt", "answer"}.

Hardware and time: `tiny` 2 CPU cores, about 3 minutes, 2 GB; `llama2-7b` is for a TPU slice (not timed yet).
Result: bits per byte on held-out text and accuracy of the target before, after plain training (CLM) and after fusion;
how much of each source reached the target's tokens; model/, a Hugging Face folder. Published (BBH, 7B): Llama-2 39.70,
CLM 40.44, KD from 13B 40.88, FuseLLM 41.75.

Stages (each a folder of the run, made once): base/MODEL (miniatures only: the zoo's chat models learn plain text),
teachers/MODEL (top-k stores), aligned/SOURCE (token ranges, vocabulary map, rows), arms/ARM, report.md, model/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from fusion_jax.data.batches import Data
from fusion_jax.data.documents import Document, all_scored_bytes, encode_documents, plain_examples, text_documents
from fusion_jax.data.loaders import load_texts
from fusion_jax.data.windows import split_windows
from fusion_jax.errors import InputError
from fusion_jax.models.folder import check_folder, load, save, tokenizer_of
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan import fits
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Training
from fusion_jax.runs.checks import check_arms, check_names, model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fusing import Arm, Fusing, FusingSettings, Held, fusing_parts, reading_limit
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import conduct
from fusion_jax.runs.prompts import eval_set, held_out_skills
from fusion_jax.runs.seeds import Measures
from fusion_jax.settings import bounded
from fusion_jax.teachers.opinions import AlignSettings, Reading
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.specs import SKILL_LESSONS
from fusion_jax.zoo.tasks import SKILLS, documents

ArmName = Literal[
    "CLM", "KD", "FuseLLM", "EM", "MinED", "MS", "MinCE", "AvgCE", "per-token", "bits-per-byte", "tail-bucket",
    "no-pivot", "byte-offsets", "fusellm-rules", "raw-pieces", "input-fallback",
]  # fmt: skip


@dataclass(frozen=True)
class Settings(FusingSettings):
    """Base models and texts. Test prompts are asked as plain text."""

    basic: ClassVar = (
        "target", "sources", "texts", "held_out_texts", "test_prompts", "arms", "out", "resume", "seed", "seeds",
        "max_length", "k", "packing", "teacher_batch", "align.vocabulary", "fusion.weight", "fusion.function",
        "train.epochs", "train.batch_size", "train.micro_batches", "train.optimizer.learning_rate",
    )  # fmt: skip

    out: Folder = "runs/fusellm"
    target: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, or zoo:NAME."""
    texts: File = ""
    """JSON lines with "text", or plain lines; without, problems of the zoo's skills with their answers."""
    held_out_texts: File = ""
    """Texts on which bits per byte are measured."""
    arms: tuple[ArmName, ...] = ("CLM", "FuseLLM")
    """What is trained, the last one becomes model/: no teacher (CLM), the source that knows the texts best alone (KD),
    FuseLLM as `align` and `fusion` say, or FuseLLM with one thing changed."""
    practice: int = 0
    """Problems that a zoo source, which knows only chats, first reads as plain text; 0: models as they are."""
    target_practice: int = 0
    """The same for the zoo's target."""
    texts_per_skill: int = 120
    """The zoo's problems of each skill to train on."""
    window: int = 0
    """Tokens at which texts are cut; 0: max_length but one."""
    packing: Literal["none", "official", "reset"] = "none"
    """A text a row (none), or blocks of max_length tokens with attention across texts (official) or not (reset)."""
    align: AlignSettings = AlignSettings(vocabulary="mined")
    practise: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "texts_per_skill", least=1)
        bounded(self, "practice", "target_practice", "window", least=0)


TINY = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-3), epochs=8.0, batch_size=16, micro_batches=1, log_every=1,
    checkpoint_every=500, remat="dots",
)  # fmt: skip
LARGE = Settings(
    packing="official",
    window=2000,
    align=AlignSettings(rules="fusellm", vocabulary="mined", ms_weight="code", pieces="raw", workers=8),
    train=TrainSettings(
        optimizer=OptimizerSettings(
            learning_rate=1e-5, warmup_ratio=0.008, beta2=0.95, weight_decay=0.1, clip_norm=1.0
        ),
        micro_batches=16,
    ),
)
PRESETS = {
    "tiny": Settings(
        practice=8000, target_practice=2000, max_length=128, teacher_batch=64, train=TINY,
        practise=replace(TINY, epochs=1.0, batch_size=32, log_every=10),
    ),
    "llama2-7b": LARGE,
    "llama2-7b-official": replace(
        LARGE,
        align=replace(LARGE.align, fallback="input", special_pairs=False),
        fusion=FusionSettings(rounding="bfloat16"),
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "FuseLLM", s, PRESETS, fuse, parts, check=check)


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    check_names((s.target, *s.sources), tuple(arms_of(s, "")))
    if not s.sources:
        raise InputError("there is none", field="sources", cure="Give at least one model")
    models = (s.target, *s.sources)
    for folder in map(model_path, models):
        fits.check_prompts(folder, tests_of(s).prompts, s.eval_new_tokens, "--eval-new-tokens", chat=False)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The stages of the paper (section 2.1 of the specification)."""
    folders = base_models(s, desk)
    limit = reading_limit(folders, s.max_length, s.k)
    tests = tests_of(s)
    texts, held_out = texts_of(s)
    windows, counts = windows_of(folders, texts, min(s.window or limit - 1, limit - 1))
    held, _ = windows_of(folders, held_out, limit - 1)
    desk.counter("records").update(counts)
    if s.packing == "none":
        desk.check_enough(len(windows), s.train, "--train")
    if limit < s.max_length:
        desk.run.log(f"texts have {limit} tokens at most instead of {s.max_length}: a model reads no more")

    fusing = Fusing(desk, s, folders, limit, Held(dict.fromkeys(folders, held), tests))
    readings = {name: fusing.read(name, windows) for name in folders}
    target = fusing.load(folders[model_name(s.target)])
    _, *sources = readings.values()
    for name, arm in arms_of(s, min(sources, key=mean_surprise).name).items():
        fused = fusing.trained(name, arm, target, readings, mask="all", whole=True, packing=s.packing)
    desk.export(fused, made_from=[f"arms/{name}/model"])
    return fusing.report(before=model_name(s.target), plain="CLM")


def arms_of(s: Settings, best: str) -> dict[str, Arm]:
    """How each arm aligns, how it fuses, and which sources teach it."""
    every = tuple(map(model_name, s.sources))
    plain = Arm((), s.align, replace(s.fusion, weight=1.0, schedule="hard", pivot=True))

    def fusion(**changes: Any) -> Arm:
        return Arm(every, s.align, replace(s.fusion, **changes))

    def align(**changes: Any) -> Arm:
        return Arm(every, replace(s.align, **changes), s.fusion)

    known = {
        "CLM": plain,
        "KD": Arm((best,), s.align, replace(s.fusion, pivot=False)),
        "FuseLLM": Arm(every, s.align, s.fusion),
        "EM": align(vocabulary="exact"),
        "MinED": align(vocabulary="mined"),
        "MS": align(vocabulary="statistics"),
        "MinCE": fusion(function="mince"),
        "AvgCE": fusion(function="avgce"),
        "per-token": fusion(choice="token"),
        "bits-per-byte": fusion(metric="bits_per_byte"),
        "tail-bucket": fusion(tail="bucket"),
        "no-pivot": fusion(pivot=False),
        "byte-offsets": align(tokens="byte_offsets"),
        "fusellm-rules": align(rules="fusellm"),
        "raw-pieces": align(pieces="raw"),
        "input-fallback": align(fallback="input"),
    }
    check_arms(s.arms, get_args(ArmName))
    return {name: known[name] for name in s.arms}


def practice(s: Settings, path: str) -> int:
    """How many texts a model practises before anything else."""
    return (s.target_practice if path == s.target else s.practice) if path.startswith("zoo:") else 0


def practice_texts(s: Settings, path: str) -> dict[str, int]:
    """How many texts of each of its skills a zoo model practises."""
    learned = SKILL_LESSONS[model_name(path)].shares
    return {skill: practice(s, path) * n // sum(learned.values()) for skill, n in learned.items()}


def base_models(s: Settings, desk: Desk) -> dict[str, Path]:
    """Folders of target and sources; the zoo's, which know only chats, first practise plain texts of their skills."""
    out = {}
    for path in (s.target, *s.sources):
        name = model_name(path)
        out[name] = practised(s, desk.base, path) if practice(s, path) else model_path(path)
    return out


def practised(s: Settings, desk: Desk, path: str) -> Path:
    """The folder of a zoo model that has read plain texts, made once for all seeds."""
    run = desk.run.sub("base").sub(model_name(path))

    def train(folder: Path) -> None:
        texts = documents(practice_texts(s, path), split="train", seed=desk.seed + 1, repeat=True)
        model = load(model_path(path), mesh=compute_for(s.practise).mesh)
        limit = min(s.max_length, model.config.max_positions)
        encoded = encode_documents(model.tokenizer, text_documents(texts), max_length=limit)
        reader = optimise(model, Data(plain_examples(encoded)), objectives.sft(), s.practise, run)
        save(reader, folder, dtype="float32")

    run.made_once("model", train, made_from=[])
    return run.file("model")


def tests_of(s: Settings) -> EvalSet:
    """The user's prompts with answers, if there are any, or beside the zoo's texts the zoo's."""
    return eval_set(s, [] if s.texts else held_out_skills(s), chat=False)


def texts_of(s: Settings) -> tuple[list[str], list[str]]:
    """Texts to train on and held-out texts: the user's, or the zoo's."""
    if s.texts:
        return load_texts(s.texts), load_texts(s.held_out_texts) if s.held_out_texts else []
    texts = documents(dict.fromkeys(SKILLS, s.texts_per_skill), split="train", seed=s.seed + 1000)
    return texts, [f"{r['prompt']}\n{r['answer']}" for r in held_out_skills(s)]


def windows_of(folders: dict[str, Path], texts: Sequence[str], limit: int) -> tuple[list[Document], Counter[str]]:
    """Texts cut so that no tokenizer needs more than `limit` tokens, EOS not included."""
    windows, blank = split_windows(texts, [tokenizer_of(folder) for folder in folders.values()], limit)
    if texts and not windows:
        raise InputError("all are blank", field="texts", cure="Give texts with words in them")
    counts = Counter({"texts": len(texts), "blank texts": blank, "windows": len(windows)})
    return text_documents([w.text for w in windows]), counts


def mean_surprise(reading: Reading) -> float:
    """Nats a byte over all documents: how well a source knows the texts."""
    size = all_scored_bytes(reading.documents, (t.offsets for t in reading.texts))
    return float(sum(row.metric[0] for row in reading.rows)) / size


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    return [*practice_parts(s), *fusing_parts(s, "fusion", s.target, "--target", s.packing)]


def practice_parts(s: Settings) -> list[Part]:
    """The practice of the zoo's models, which read texts as long as they can."""

    def part(path: str, option: str) -> Part:
        tokens = min(s.max_length, check_folder(model_path(path)).max_positions)
        texts = sum(practice_texts(s, path).values())
        return Training(
            f"practice of {path}", path, objectives.sft(), s.practise, tokens, "--practise", option, "--max-length",
            records=lambda records: texts,
        )  # fmt: skip

    models = [(s.target, "--target"), *((source, "--sources") for source in s.sources)]
    return [part(path, option) for path, option in models if practice(s, path)]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
