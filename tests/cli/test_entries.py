"""What an experiment is given: values out of range, wrong models, entries that clash, too little data; and its report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import cache_teacher, dpo, fusechat, fusellm, generate, gsm8k_responses, sft, wrpo
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl, write_jsonl
from fusion_jax.models.folder import load, load_tokenizer, save
from fusion_jax.runs import desk
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.provenance import Ran
from fusion_jax.settings import run as run_experiment
from fusion_jax.store import run_folder
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import mixture
from tests.small import attempt, fails, pairs, quads, small_folder, small_model, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small") / "model")


BAD_VALUES: list[tuple[Any, str, str]] = [
    (wrpo, "--seeds", "0"), (wrpo, "--sft-share", "2"), (wrpo, "--held-out", "1.0"), (wrpo, "--tolerance", "-1"),
    (dpo, "--held-out", "1.5"), (dpo, "--train.batch-size", "0"), (dpo, "--train.log-every", "0"),
    (sft, "--train.epochs", "0"), (sft, "--train.epochs", "nan"), (sft, "--train.optimizer.learning-rate", "-1e-4"),
    (wrpo, "--preference.optimizer.beta1", "1"), (wrpo, "--sample.num-samples", "0"), (wrpo, "--sample.top-p", "0"),
    (generate, "--num-samples", "0"), (generate, "--top-p", "0"), (generate, "--max-new-tokens", "0"),
    (generate, "--batch-size", "0"), (generate, "--beams", "0"), (wrpo, "--sample.no-repeat-ngram", "-1"),
    (cache_teacher, "--k", "0"), (cache_teacher, "--batch-size", "0"),
]  # fmt: skip


@pytest.mark.parametrize("module, option, value", BAD_VALUES)
def test_values_out_of_range(module, option, value, tmp_path, capsys):
    """Each is refused by its name before a model is read; the cure says what may be given."""
    out = [] if module is generate else ["--out", str(tmp_path / "out")]
    name = option.removeprefix("--").split(".")[-1]
    line = fails(module, [*out, option, value], capsys, "out of range. Give")
    assert name in line or name.replace("-", "_") in line
    assert not list(tmp_path.rglob("*.jsonl"))


def test_wrpo_refuses_wrong_models_and_entries_that_do_not_go_together(tmp_path, capsys, model):
    out = ["--out", str(tmp_path / "run")]
    fails(wrpo, [*out, "--reward-model", "/nonexist"], capsys, "/nonexist", "--reward-model", "there is no such folder")
    fails(wrpo, [*out, "--reward-model", str(model)], capsys, "--reward-model", "has 0 scores, a reward model has one")
    save(small_model(num_labels=1), tmp_path / "reward")
    target = ["--target", str(tmp_path / "reward")]
    fails(wrpo, [*out, *target], capsys, "--target", "has 1 scores, a language model has none")
    fails(wrpo, [*out, "--sources", "zoo:qwen-source", "zoo:qwen"], capsys, "field '--sources'", "no model 'qwen'")
    file = str(write(tmp_path / "quads.jsonl", quads(2)))
    fails(wrpo, [*out, "--quadruples", file, "--responses", file], capsys, "--responses", "--quadruples skips")
    fails(wrpo, [*out, "--sft-data", file], capsys, "--sft-data", "belongs to --quadruples")
    fails(wrpo, [*out, "--accuracy", "gsm"], capsys, "field '--accuracy'", "Did you mean 'gsm8k'")
    assert not (tmp_path / "run").exists()
    fails(wrpo, [*out, "--quadruples", file], capsys, "field '--preference.batch-size'", "2 examples do not fill one")


def test_lines_are_counted_as_an_editor_counts_them(tmp_path, capsys, model):
    """Blank lines too; of responses it is the file's line, not the prompt's number; test prompts name their file."""
    ready = {"prompt": "a?", "source_model": "s", "response": "4", "answer": "4"}
    lines = [ready, {**ready, "source_model": "t"}, {**ready, "prompt": "b?", "answer": None}]
    file = tmp_path / "responses.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))
    args = ["--target", str(model), "--out", str(tmp_path / "run"), "--responses", str(file)]
    fails(wrpo, args, capsys, str(file), "record 5, field 'answer'", "is missing", "--reward-model")
    test = write(tmp_path / "test.jsonl", [{"prompt": "a?", "answer": "4"}, {"prompt": "b?"}])
    fails(wrpo, [*args, "--test-prompts", str(test)], capsys, str(test), "record 2, field 'answer'", "is missing")


def test_too_few_preferences_are_told_with_what_was_dropped(tmp_path, capsys, model):
    """Before sampling where the prompts are too few, behind it where too many were dropped: report.md has the counts."""
    prompts = [{k: r[k] for k in ("prompt", "answer")} for r in mixture({"add": 6}, split="train", seed=0)]
    args = ["--target", str(model), "--out", str(tmp_path / "run"), "--sources", str(model), "--baseline", "False"]
    args += ["--prompts", str(write(tmp_path / "prompts.jsonl", prompts)), "--sample.max-new-tokens", "2"]
    args += ["--sample.num-samples", "2", "--sample.temperature", "0", "--sft-share", "0"]
    fails(wrpo, args, capsys, "field '--preference.batch-size'", "6 examples do not fill one batch of 16")
    args += ["--preference.batch-size", "4"]
    line = fails(wrpo, args, capsys, "field '--preference'", "0 examples are left", "prompt: all responses blank 6")
    assert "The model writes nothing" in line and "batch" not in line
    assert "| preference prompts | prompt: all responses blank | 6 |" in (tmp_path / "run/report.md").read_text()


@pytest.mark.parametrize(
    "rewards, texts, told",
    [
        ((1.0, 1.0), ("x", "y"), "prompt: tie of best and worst 8). The responses to a prompt have equal rewards"),
        ((1.0, 0.0), ("x", "x"), "prompt: identical responses 8). Draw more varied samples"),
        ((1.0,), ("x",), "prompt: fewer than two usable responses 8). Give two responses to a prompt"),
        ((1.0, 0.0), (" ", ""), "prompt: all responses blank 8). The model writes nothing"),
    ],
    ids=["ties", "same", "single", "blank"],
)
def test_a_stage_without_examples_says_why(rewards, texts, told, tmp_path, capsys, model):
    """And not that the batch is too large; a smaller batch would not help."""
    given = [
        {"prompt": f"{i}?", "source_model": f"m{j}", "response": text, "reward": reward}
        for i in range(8) for j, (reward, text) in enumerate(zip(rewards, texts))
    ]  # fmt: skip
    file = str(write(tmp_path / "r.jsonl", [*given]))
    args = ["--target", str(model), "--responses", file, "--out", str(tmp_path / "run"), "--pairs", "sources"]
    args += ["--sft-share", "0", "--preference.batch-size", "2", "--reward-model", str(tmp_path / "reward")]
    save(small_model(num_labels=1), tmp_path / "reward")
    line = fails(wrpo, args, capsys, "field '--preference': 0 examples are left to train on", told)
    assert "batch" not in line
    if not "".join(texts).strip():
        args[args.index("--sft-share") + 1] = "0.5"
        args += ["--sft.batch-size", "1", "--out", str(tmp_path / "other")]
        fails(wrpo, args, capsys, "field '--sft': 0 examples are left to train on", "blank response 16")


def test_solutions_that_are_refused_leave_no_run(tmp_path, capsys):
    solution = {"is_correct": True, "solution": "A: 2"}
    record = {"question": "1 + 1?", "ground_truth": "A: 2", **dict.fromkeys(gsm8k_responses.SOURCES, solution)}
    lessons = [{"question": f"{i}?", "answer": "#### 2"} for i in range(16)]
    for solutions, answers, told in [
        ([record, record], lessons, "record 2, field 'question': repeats record 1"),
        ([{**record, "6b_finetuning": ["A: 2"]}], lessons, "record 1, field '6b_finetuning': is missing or no object"),
        ([{**record, "question": 7}], lessons, "record 1, field 'question': is int, not text"),
        ([record], lessons[:3], "holds 3 lessons"), ([record], [{**lessons[0], "answer": 3}], "field 'answer'"),
    ]:  # fmt: skip
        args = ["--out", str(tmp_path / "run"), "--solutions", str(write(tmp_path / "s.jsonl", solutions))]
        args += ["--train", str(write(tmp_path / "t.jsonl", answers))]
        fails(gsm8k_responses, args, capsys, told)
    assert not (tmp_path / "run").exists()


def test_test_prompts_that_are_trained_on_are_told(tmp_path):
    run = open_run(tmp_path / "direct", {}, resume=False)
    own = desk.Desk(run, "WRPO", Ran("", None, {}))
    own.note_shared([{"prompt": "a"}, {"prompt": "b"}], ["b", "c"])
    assert own.counts == {"test prompts": {"also trained on": 1}}
    assert "note: 1 of 2 test prompts are trained on, too" in (tmp_path / "direct/log.txt").read_text()


def test_a_wrong_path_leaves_the_folder_usable(tmp_path, monkeypatch, capsys, model):
    """A run that made nothing leaves no folder; one that was killed before it made anything is started anew."""
    args = ["--model", str(model), "--out", str(tmp_path / "out"), "--train.batch-size", "4"]
    fails(dpo, [*args, "--data", str(tmp_path / "none.jsonl")], capsys, "there is no such file")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(run_folder, "remove_unused", lambda *killed: None)
    fails(dpo, [*args, "--data", str(tmp_path / "none.jsonl")], capsys, "there is no such file")
    (tmp_path / "out/stage").mkdir()
    (tmp_path / "out/stage/log.txt").write_text("begun")
    for resume in ("True", "False"):
        fails(dpo, [*args, "--data", str(tmp_path / "nor.jsonl"), "--resume", resume], capsys, "nor.jsonl")
    monkeypatch.setattr(desk, "optimise", lambda model, *_, **how: model)
    args += ["--held-out", "0.2", "--data", str(write(tmp_path / "pairs.jsonl", pairs(5)))]
    attempt(dpo, args)
    report = (tmp_path / "out/report.md").read_text()
    assert "| pairs | used | 4 |\n| pairs | held out | 1 |" in report
    fails(dpo, args, capsys, "holds a finished run")


def test_quadruples_without_a_source_are_dropped_by_sft(tmp_path, model):
    """And the report names rows used and the final loss; the folder's log has a line for the stage."""
    records = quads(6)
    records[2]["chosen"][0] = None
    args = ["--model", str(model), "--data", str(write(tmp_path / "q.jsonl", records)), "--train.batch-size", "5"]
    args += ["--train.epochs", "1", "--train.optimizer.warmup-ratio", "0", "--out", str(tmp_path / "run")]
    attempt(sft, args)
    report, loss = (tmp_path / "run/report.md").read_text(), read_jsonl(tmp_path / "run/metrics.jsonl")[-1]["loss"]
    assert (
        "| records | no source response | 1 |\n| records | used | 5 |" in report
        and f"| final loss | {loss:.4f} |" in report
    )
    assert f"run: steps 1 to 1, last loss {loss:.4f}" in (tmp_path / "run/log.txt").read_text()


def test_sources_of_ready_responses_may_be_names_alone(tmp_path, capsys):
    """Their models are not loaded; without the responses they would be."""
    records = [{"prompt": "p", "source_model": "far", "response": "r", "reward": 1.0, "answer": "r"}]
    args = ["--sources", "nowhere/far", "--out", str(tmp_path / "run")]
    fails(wrpo, args, capsys, "field '--sources'")
    fails(wrpo, [*args, "--responses", str(write(tmp_path / "r.jsonl", records))], capsys, "do not fill one batch")


def test_rows_are_named_by_the_stages_that_ran(tmp_path, monkeypatch, model):
    """Ready quadruples without SFT data: SFT on the sources' responses, DPO and WRPO instead of SFT-DPO and SFT-WRPO."""
    test = [{"prompt": "What is 1 + 1?", "answer": "2", "skill": "add"}]
    args = ["--target", str(model), "--quadruples", str(write(tmp_path / "q.jsonl", quads(5)))]
    args += ["--test-prompts", str(write(tmp_path / "t.jsonl", test)), "--out", str(tmp_path / "run")]
    args += ["--preference.batch-size", "4", "--preference.epochs", "1", "--held-out", "0.2", "--eval-new-tokens", "2"]
    monkeypatch.setattr(desk, "optimise", lambda model, *_, **how: model)
    attempt(wrpo, args)
    report = (tmp_path / "run/report.md").read_text()
    assert re.findall(r"^\| (\S+) \| 0\.000 \| 0\.000 \[", report, re.MULTILINE) == ["Target", "SFT-continued", "DPO", "WRPO"]
    assert "| WRPO - DPO |" in report and "SFT-DPO" not in report
    assert "| wrpo | used | 4 |\n| wrpo | held out | 1 |" in report


def test_generated_text_is_printed_as_it_is_and_its_folder_is_looked_for(tmp_path, capsys, model):
    args = ["--model", str(model), "--max-new-tokens", "1", "--prompt", "Sort [b] a [/x]"]
    attempt(generate, args)
    assert "Sort [b] a [/x]" in capsys.readouterr().out
    line = fails(generate, [*args, "--out", str(tmp_path / "no/out.jsonl")], capsys, "no/out.jsonl", "not there")
    assert ".tmp" not in line
    with pytest.raises(FileNotFoundError) as missing:
        write_jsonl(tmp_path / "no/out.jsonl", [])
    assert missing.value.filename == str(tmp_path / "no/out.jsonl")


def test_help_explains_the_options(capsys):
    """The experiment's text, then a sentence for each of its settings and of nested ones."""
    with pytest.raises(SystemExit) as stopped:
        run_experiment(
            fusellm.Settings, fusellm.main, presets=fusellm.PRESETS, description="Whole.", args=["--help-all"]
        )
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stopped.value.code == 0 and told.index("Whole.") < told.index("Problems that a zoo source, which knows only")
    assert "How a source's rows come to the pivot's positions" in told


def test_a_zoo_name_in_python_is_told_where_its_folder_is():
    with pytest.raises(InputError, match=r"zoo:target: there is no such folder.*zoo\.model_path\('zoo:target'\)"):
        load("zoo:target")
    assert len(load_tokenizer(str(model_path("zoo:target")))) > 100


def test_a_folder_without_a_tokenizer_is_named(tmp_path, capsys, model):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    texts = str(write(tmp_path / "texts.jsonl", [{"text": "some text"}]))
    args = ["--texts", texts, "--out", str(tmp_path / "store")]
    told = f"{bare}, field '--model': holds no tokenizer. Add the folder's tokenizer.json"
    fails(cache_teacher, ["--model", str(bare), *args], capsys, told)
    told = f"{bare}, field '--windows-for': holds no tokenizer"
    fails(cache_teacher, ["--windows-for", str(bare), *args], capsys, told)
    told = "nope, field '--windows-for': there is no such folder"
    fails(cache_teacher, ["--windows-for", "nope", *args], capsys, told)
    out = ["--out", str(tmp_path / "run")]
    fails(fusechat, ["--sources", str(bare), *out], capsys, f"{bare}: holds no tokenizer")
    assert not (tmp_path / "store").exists()


def test_a_store_is_told_about_and_another_one_s_part_is_refused(tmp_path, capsys, model):
    """Texts beside windows, the model's maximum, parts that were there; parts that changed places without --verify."""
    texts = write(tmp_path / "texts.jsonl", [{"text": "some text " * (1 + 60 * i)} for i in range(4)] + [{"text": " "}])
    args = ["--texts", str(texts), "--model", str(model), "--out", str(tmp_path / "store"), "--verify", "0"]
    args += ["--part-size", "1"]
    attempt(cache_teacher, args)
    told = capsys.readouterr().out
    first, second, *others = sorted((tmp_path / "store").glob("part-*"))
    assert f"| 5 | {2 + len(others)} | 1 |" in told and "max_length is 128: the model reads no more" in told
    assert "parts were there" not in told
    second.unlink()
    attempt(cache_teacher, args)
    assert f"{1 + len(others)} of {2 + len(others)} parts were there" in capsys.readouterr().out
    second.write_bytes(first.read_bytes())
    fails(cache_teacher, args, capsys, f"{second}, record 1: is of another text")
    fails(cache_teacher, [*args, "--max-length", "64"], capsys, "other documents", "depend on --max-length")


def test_texts_without_words_leave_no_store(tmp_path, capsys, model):
    args = ["--model", str(model), "--out", str(tmp_path / "store"), "--texts"]
    for records, told in ([], "holds no text. Give"), ([{"text": " "}], "holds no text that is not blank"):
        fails(cache_teacher, [*args, str(write(tmp_path / "texts.jsonl", records))], capsys, "texts.jsonl", told)
    assert not (tmp_path / "store").exists()


def test_more_entries_than_the_vocabulary_has(tmp_path, capsys, model):
    (tmp_path / "texts.txt").write_text("some text\n")
    args = ["--texts", str(tmp_path / "texts.txt"), "--model", str(model), "--out", str(tmp_path / "store")]
    fails(cache_teacher, [*args, "--k", "100000"], capsys, "field '--k'", "more than the vocabulary's 340")
