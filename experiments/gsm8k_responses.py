"""Turn the published GSM8K solutions of four models into the files that experiments/wrpo.py reads, and make a target.

    python experiments/gsm8k_responses.py --solutions SOLUTIONS.jsonl --train TRAIN.jsonl --out runs/gsm8k
    python experiments/wrpo.py --responses runs/gsm8k/responses.jsonl --test-prompts runs/gsm8k/test.jsonl \\
        --target runs/gsm8k/target --verifier gsm8k_format --accuracy gsm8k --out runs/gsm8k-wrpo

Data: solutions {"question", "ground_truth", MODEL: {"is_correct", "solution"}} (openai/grade-school-math, MIT) and
training problems {"question", "answer"}.

Output: responses.jsonl (every third problem is kept out), test.jsonl, and target/, a small
Llama with a byte-level BPE tokenizer of 4,096 entries trained on the questions and answers, after `--steps` steps of
SFT. Hardware: 2 CPU cores, about 5 minutes. The target is far too small to solve such problems: the run shows the
data path on real responses, and in its report what was dropped and why.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import Place, parse_rows, prompt_id, text
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record, numbered, write_jsonl
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, save
from fusion_jax.models.parameters import init_params
from fusion_jax.options import File, Folder
from fusion_jax.runs.opening import open_run
from fusion_jax.settings import bounded, seeded
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo.tokenizers import train_tokenizer

SOURCES = ("175b_verification", "175b_finetuning", "6b_verification", "6b_finetuning")


@dataclass(frozen=True)
class Settings:
    """Files of GSM8K and how long the target is trained."""

    solutions: File
    """Solutions of several models: records with "question", "ground_truth" and a field for each model."""
    train: File
    """Problems with answers: records with "question" and "answer"."""
    out: Folder = "runs/gsm8k"
    """Folder of the run, which is made."""
    resume: bool = False
    """Continue the run that --out holds, if there is one."""
    vocab_size: int = 4096
    """Entries of the target's tokenizer."""
    steps: int = 400
    """Optimizer steps of the target's SFT, in batches of 16."""
    seed: int = 0
    """Decides weights and order."""

    def __post_init__(self) -> None:
        bounded(self, "vocab_size", least=300)
        bounded(self, "steps", least=1)
        seeded(self, "seed")


def main(s: Settings) -> None:
    with open_run(s.out, s, resume=s.resume) as run:
        make(s, run)
        run.finish()


def make(s: Settings, run: RunFolder) -> None:
    """The responses, the test problems and the target."""
    solutions, lessons = load_records(s.solutions), load_records(s.train)
    responses, test = split(solutions, s.solutions)
    rows, _ = parse_rows(lessons, "sft", file=s.train)
    if len(rows) < 16:
        raise InputError(f"holds {len(rows)} lessons", file=s.train, cure="Give at least one batch of 16")
    write_jsonl(run.file("responses.jsonl"), responses)
    write_jsonl(run.file("test.jsonl"), test)
    run.log(f"{len(responses)} responses, {len(test)} test problems")

    texts = [f"{row.messages[-1]['content']}\n{row.responses[0]}" for row in rows]
    tokenizer = train_tokenizer("byte_bpe", "inst", s.vocab_size, texts)
    config = config_from_hf({
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 192, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 6, "head_dim": 32, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "initializer_range": 0.05,
    })  # fmt: skip
    target = Model(config, init_params(config, jax.random.key(s.seed)), tokenizer)
    tokens = TokeniseSettings(max_length=256, max_prompt_length=128, eos="if_missing")
    examples, _ = make_examples(rows, tokenizer, TextSettings(tokens=tokens))
    settings = TrainSettings(
        optimizer=OptimizerSettings(learning_rate=1e-3), batch_size=16, micro_batches=1, seed=s.seed, log_every=20,
        epochs=s.steps / (len(rows) // 16), remat="dots", checkpoint_every=100,
    )  # fmt: skip
    trained = optimise(target, Data(examples), objectives.sft(), settings, run.sub("sft"))
    run.made_once("target", lambda folder: save(dataclasses.replace(trained, file_dtype="float32"), folder))


def split(solutions: list[Record], file: str) -> tuple[list[Record], list[Record]]:
    """Responses to two thirds of the problems, the others for the test.

    Raises:
      InputError: a field is missing or of another type; a problem that stands twice.
    """
    responses, test = [], []
    seen: dict[str, int] = {}
    for count, (number, record) in enumerate(numbered(solutions), 1):
        place = Place(file, number)
        question, truth = text(record, "question", place), text(record, "ground_truth", place)
        if question in seen:
            raise place.error(f"repeats record {seen[question]}", "question", "Remove one of the two")
        seen[question] = number
        shared = {"prompt_id": prompt_id(question), "prompt": question, "answer": truth, "skill": "gsm8k"}
        if count % 3 == 0:
            test.append(shared)
            continue
        for source in SOURCES:
            given = record.get(source)
            if not isinstance(given, dict):
                raise place.error("is missing or no object", source, 'Write {"is_correct": ..., "solution": ...}')
            solution = text(given, "solution", Place(file, f"{number} ({source})"), blank=True)
            responses.append({**shared, "source_model": source, "sample": 0, "response": solution})
    return responses, test


PRESETS = {"tiny": Settings("", "")}

if __name__ == "__main__":
    run_experiment(Settings, main, presets=PRESETS, description=__doc__)
