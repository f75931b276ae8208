"""Killed by SIGKILL at random moments and resumed, a run ends bit for bit like one that was never disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import jax
import pytest
from safetensors.numpy import load_file

from experiments import alirector, dpo, fusechat, kca, mktod, prune, seft
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.folder import Model, save
from fusion_jax.models.parameters import init_params
from fusion_jax.zoo import chinese
from tests.conftest import is_daily
from tests.programs import Program
from tests.small import attempt, even_pairs, fails, pairs, script, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

STEPS_AN_EPOCH = 12


def options(tmp_path: Path, out: str, epochs: int) -> list[str]:
    return [
        "--model", str(tmp_path / "model"), "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / out),
        "--train.checkpoint-every", "7", "--train.batch-size", "4", "--train.micro-batches", "2",
        "--train.epochs", str(epochs), "--train.eval-every", "20", "--train.remat", "none",
    ]  # fmt: skip


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def killed_and_resumed(module: ModuleType, arguments: list[str], moments: Sequence[Callable[[], bool]]) -> None:
    """A run that is killed at each of these moments, resumed each time, and then left to its end."""
    name, resume = module.__name__.rpartition(".")[2], list[str]()
    for moment in moments:
        process = Program(script(name, *arguments, *resume), os.environ | {"JAX_PLATFORMS": "cpu"})
        while process.poll() is None and not moment():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors[-2000:]
        resume = ["--resume", "True"]
    attempt(module, [*arguments, *resume])


def test_killed_runs_end_like_undisturbed_ones(tmp_path, capsys, request):
    """Two kills in three epochs; in daily work one in two."""
    kills, epochs = (1, 2) if is_daily(request.config) else (2, 3)
    steps, resume = STEPS_AN_EPOCH * epochs, list[str]()
    small_folder(tmp_path / "model")
    write(tmp_path / "pairs.jsonl", even_pairs(56))
    attempt(dpo, options(tmp_path, "whole", epochs))

    rng = random.Random(0)
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    for _ in range(kills):
        process = Program(script("dpo", *options(tmp_path, "killed", epochs), *resume), env)
        before, wanted = lines(tmp_path / "killed"), rng.randint(1, steps // (kills + 1))
        while process.poll() is None and lines(tmp_path / "killed") < before + wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors[-2000:]
        resume = ["--resume", "True"]
    attempt(dpo, [*options(tmp_path, "killed", epochs), "--resume", "True"])

    assert lines(tmp_path / "whole") >= steps
    assert read_jsonl(tmp_path / "killed/metrics.jsonl") == read_jsonl(tmp_path / "whole/metrics.jsonl")
    expected, actual = (load_file(tmp_path / d / "model/model.safetensors") for d in ("whole", "killed"))
    assert expected.keys() == actual.keys()
    assert all(expected[k].tobytes() == actual[k].tobytes() for k in expected)

    fails(dpo, options(tmp_path, "killed", epochs), capsys, "holds a finished run")


@pytest.mark.slow
def test_a_fusion_killed_while_reading_and_while_training(tmp_path):
    """Once when the second teacher begins to read, once in the middle of training."""
    write(tmp_path / "pairs.jsonl", [{"prompt": p["prompt"], "response": p["chosen"]} for p in pairs(48)])

    def arguments(out: str) -> list[str]:
        return [
            "--out", str(tmp_path / out), "--chats", str(tmp_path / "pairs.jsonl"), "--sources", "zoo:gemma-source",
            "--arms", "pairwise", "--train.batch-size", "8", "--train.epochs", "4", "--train.checkpoint-every", "5",
        ]  # fmt: skip

    attempt(fusechat, arguments("whole"))
    arm, folder = "arms/with-gemma-source", tmp_path / "killed"
    moments = [lambda: (folder / "teachers/gemma-source/store.json").exists(), lambda: lines(folder / arm) >= 12]
    killed_and_resumed(fusechat, arguments("killed"), moments)
    assert read_jsonl(folder / arm / "metrics.jsonl") == read_jsonl(tmp_path / "whole" / arm / "metrics.jsonl")
    files = (tmp_path / name / "targets/with-gemma-source/model.safetensors" for name in ("whole", "killed"))
    expected, actual = (file.read_bytes() for file in files)
    assert expected == actual


def made(folder: Path) -> dict[str, bytes]:
    """The records, metrics, results and weights of a run."""
    files = [f for kind in ("*.jsonl", "results.json", "*.safetensors") for f in folder.rglob(kind)]
    names = {f.relative_to(folder).as_posix(): f for f in files if f.name != "times.jsonl"}
    return {name: file.read_bytes() for name, file in names.items() if "checkpoints" not in name}


@pytest.mark.slow
def test_an_evolution_killed_in_its_reviser_and_in_a_round(tmp_path):
    """Once when the reviser's labels begin to be trained, once when a round's drafts are there."""

    def arguments(out: str) -> list[str]:
        small = {
            "reviser": "zoo:plants-target", "zoo-pairs": 24, "own-drafts": 0, "test-per-skill": 2, "eval-samples": 0,
            "baselines": "none", "evolution.rounds": 1, "evolution.internal": 0, "evolution.round-prompts": 8,
            "evolution.drafts.batch-size": 8, "evolution.drafts.num-samples": 2, "evolution.revisions.batch-size": 8,
            "warm-up.batch-size": 4, "adapt.batch-size": 4, "policy.batch-size": 4, "adapt.checkpoint-every": 2,
        }  # fmt: skip
        given = [word for name, value in small.items() for word in (f"--{name}", str(value))]
        return ["--out", str(tmp_path / out), *given]

    attempt(seft, arguments("whole"))
    folder = tmp_path / "killed"
    moments = [lambda: lines(folder / "reviser") >= 3, lambda: (folder / "SEFT-1/drafts.jsonl").exists()]
    killed_and_resumed(seft, arguments("killed"), moments)
    expected, actual = made(tmp_path / "whole"), made(folder)
    assert len(expected) > 12 and expected == actual


@pytest.mark.slow
def test_a_joint_training_killed_between_its_evaluations(tmp_path):
    """Once in the retriever's own training, once in the joint one, whose index is as old as it was; the best state by
    entity F1 is the same one."""

    def arguments(out: str) -> list[str]:
        small = {
            "miniature.dialogues": 16, "miniature.towns": 2, "miniature.town-dialogues": 3, "miniature.places": 12,
            "miniature.width": 32, "miniature.layers": 1, "raising.batch-size": 8, "pretrain.batch-size": 8,
            "joint.batch-size": 4, "joint.epochs": 2, "joint.checkpoint-every": 2, "joint.eval-every": 2,
            "joint.best-of": 3, "joint.dropout": 0.1, "joint.log-every": 1, "pretrain.log-every": 1,
            "pretrain.checkpoint-every": 2, "raising.epochs": 1, "pretrain.epochs": 1, "arms": "full", "answer-batch": 4,
        }  # fmt: skip
        given = [word for name, value in small.items() for word in (f"--{name}", str(value))]
        return ["--out", str(tmp_path / out), *given]

    attempt(mktod, arguments("whole"))
    folder = tmp_path / "killed"
    moments = [lambda: lines(folder / "retriever") >= 2, lambda: lines(folder / "arms/full") >= 9]
    killed_and_resumed(mktod, arguments("killed"), moments)
    expected, actual = made(tmp_path / "whole"), made(folder)
    assert len(expected) > 8 and expected == actual


@pytest.mark.slow
def test_a_corrector_killed_in_its_first_stage_and_in_its_distillation(tmp_path):
    """Once in the first corrector, once when both alignment models have taught the second one a step."""
    tokenizer = chinese.wordpiece()
    config = chinese.bart(tokenizer, layers=1, positions=256)
    save(Model(config, init_params(config, jax.random.key(0)), tokenizer), tmp_path / "bart")

    def arguments(out: str) -> list[str]:
        how = {"epochs": 2, "batch-size": 8, "log-every": 1, "checkpoint-every": 2, "dropout": 0.1, "source-dropout": 0.1}
        given = {f"{stage}.{name}": x for stage in ("corrector", "alignment", "distillation") for name, x in how.items()}
        given |= {
            "out": tmp_path / out, "model": tmp_path / "bart", "arms": "alirector", "raised": 0, "validation": 4,
            "corrector.epochs": 8, "corrector.checkpoint-every": 16, "corrector.optimizer.learning-rate": 5e-3,
            "corpus.lang8": 60, "corpus.hsk": 8, "corpus.copies": 2, "corpus.test": 8, "corpus.longest": 12,
            "writing.max-new-tokens": 24,
        }  # fmt: skip
        return [word for name, x in given.items() for word in (f"--{name}", str(x))]

    attempt(alirector, arguments("whole"))
    folder = tmp_path / "killed"
    moments = [lambda: lines(folder / "corrector") >= 20, lambda: lines(folder / "alirector") >= 1]
    killed_and_resumed(alirector, arguments("killed"), moments)
    expected, actual = made(tmp_path / "whole"), made(folder)
    assert {"drafts.jsonl", "answers/alirector/test.jsonl", "model/model.safetensors"} <= expected.keys()
    assert expected == actual


@pytest.mark.slow
def test_a_search_for_blocks_killed_between_its_steps(tmp_path):
    """Once when the second step is written, once when the pruned model is being compared."""

    def arguments(out: str) -> list[str]:
        small = {
            "model": "zoo:deep", "blocks": 4, "problems": 2, "test-per-skill": 1, "compared": "random", "shares": 0.1,
            "rows": 14,
        }  # fmt: skip
        return ["--out", str(tmp_path / out), *(word for name, x in small.items() for word in (f"--{name}", str(x)))]

    attempt(prune, arguments("whole"))
    folder = tmp_path / "killed"
    moments = [(folder / file).exists for file in ("search/002.jsonl", "curves/random.jsonl")]
    killed_and_resumed(prune, arguments("killed"), moments)
    expected, actual = made(tmp_path / "whole"), made(folder)
    assert {"search/004.jsonl", "curves/search.jsonl", "model/model.safetensors"} <= expected.keys()
    assert expected == actual


@pytest.mark.slow
def test_an_examination_killed_while_asking_and_while_training(tmp_path):
    """Once when some replies of the helper are kept, once in the tuning of the second arm."""

    def arguments(out: str) -> list[str]:
        small = {
            "out": tmp_path / out, "arms": "standard discard", "world.people": 16, "world.tested": 8, "world.others": 6,
            "miniature.width": 32, "miniature.layers": 1, "miniature.papers": 64, "miniature.items": 2, "exam.shots": 1,
            "miniature.raising.batch-size": 16, "train.batch-size": 8, "train.epochs": 4, "train.checkpoint-every": 3,
            "train.log-every": 1, "max-new-tokens": 8,
        }  # fmt: skip
        return [word for name, value in small.items() for word in (f"--{name}", *str(value).split())]

    attempt(kca, arguments("whole"))
    folder = tmp_path / "killed"

    def replies() -> int:
        file = folder / "replies/0.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    moments = [lambda: replies() >= 20, lambda: lines(folder / "arms/discard") >= 4]
    killed_and_resumed(kca, arguments("killed"), moments)
    expected, actual = made(tmp_path / "whole"), made(folder)
    assert {"replies/0.jsonl", "train/4-partition.jsonl", "verdicts/discard/test.jsonl"} <= expected.keys()
    assert expected == actual
