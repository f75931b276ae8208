"""Alirector by one command: every stage and arm, FCGEC behind the pairs, a decoder alone, devices, refused input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from experiments import alirector
from fusion_jax.correction.pairs import load_pairs, load_para, write_pairs
from fusion_jax.evals.cgec import score
from fusion_jax.jsonl import read_jsonl
from fusion_jax.zoo.chinese import ChineseSettings, write_corpus
from tests.programs import Program
from tests.small import attempt, fails, script, virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")
ARMS = "plain corrector more two_pass copy alirector"
SMALL = {"epochs": 2, "batch-size": 8, "log-every": 1, "dropout": 0.1, "source-dropout": 0.1}
FCGEC = {
    str(number): {
        "sentence": "我昨天买一本书。", "error_flag": 1, "error_type": "CM",
        "operation": json.dumps([{"Insert": [{"pos": number % 4, "tag": "INS_1", "label": "了"}]}], ensure_ascii=False),
    }
    for number in range(20)
}  # fmt: skip


def words(out: Path, data: Path, **more: object) -> list[str]:
    """The command on the files of `data`."""
    given: dict[str, object] = {
        "out": out, "pairs": data / "train.json", "tests": data / "test.para", "arms": ARMS, "validation": 8, "raised": 0, "fcgec-validation": 1,
        "writing.max-new-tokens": 24, "corrector.epochs": 8, "corrector.optimizer.learning-rate": 5e-3,
    }  # fmt: skip
    given = {f"{stage}.{name}": value for stage in ("corrector", "alignment", "distillation") for name, value in SMALL.items()} | given
    given |= {name.replace("__", ".").replace("_", "-"): value for name, value in more.items()}
    return [word for name, value in given.items() if value != "" for word in (f"--{name}", *str(value).split())]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chinese")
    write_corpus(folder, ChineseSettings(lang8=60, hsk=8, copies=2, dev=4, test=12, longest=13))
    (folder / "fcgec.json").write_text(json.dumps(FCGEC, ensure_ascii=False))
    return folder


@pytest.fixture(scope="module")
def once(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alirector") / "run"
    attempt(alirector, words(out, data))
    return out


def test_scores_are_those_of_what_was_written(once, data):
    results = json.loads((once / "results.json").read_text())
    sentences, _ = load_para(data / "test.para")
    assert list(results) == ARMS.split()
    for arm in ARMS.split():
        texts = [r["text"] for r in read_jsonl(once / f"answers/{arm}/test.jsonl")]
        report = score([s.source for s in sentences], texts, [s.references for s in sentences])
        assert results[arm]["F0.5"] == [report.f] and results[arm]["over-correction"] == [report.over_correction]
    report = (once / "report.md").read_text()
    assert "no_dict" in report and "right sentences changed" in report and "drafts" in report
    page = (once / "examples.html").read_text()
    assert "<ins>" in page and "<td>source</td>" in page


def test_drafts_and_alignment_models_are_of_the_second_part(once, data):
    pairs, _ = load_pairs(data / "train.json")
    drafts = read_jsonl(once / "drafts.jsonl")
    assert 0.2 * len(pairs) < len(drafts) < 0.4 * len(pairs)
    logged = {name: read_jsonl(once / name / "metrics.jsonl") for name in ("corrector", "source_first", "alirector", "more")}
    steps = {name: sum("loss" in line for line in lines) for name, lines in logged.items()}
    assert steps["alirector"] == steps["more"] == steps["source_first"] < steps["corrector"]
    *_, line, held = logged["alirector"]
    assert line["loss"] == pytest.approx(line["loss/language"] + 0.5 * line["loss/alignment"], rel=1e-4)
    assert "eval_loss" in held and "eval_loss/alignment" not in held  # judged by their cross-entropy


@pytest.mark.slow
def test_fcgec_goes_on_from_the_models_of_the_pairs(data, tmp_path):
    out = tmp_path / "fcgec"
    attempt(alirector, words(out, data, arms="plain two_pass alirector", fcgec=data / "fcgec.json", further__batch_size=8))
    assert (out / "fcgec-drafts.jsonl").exists() and not (out / "more").exists()
    pairs, further = (load_file(out / name / "model/model.safetensors") for name in ("alirector", "fcgec-alirector"))
    last = load_file(out / "model/model.safetensors")
    assert all(np.array_equal(further[name], last[name]) for name in last)
    assert 0 < max(float(np.abs(pairs[name] - further[name]).max()) for name in pairs) < 0.2


def test_no_more_is_trained_than_arms_ask_for(data, tmp_path):
    attempt(alirector, words(tmp_path / "plain", data, arms="plain"))
    assert not (tmp_path / "plain/corrector").exists() and not (tmp_path / "plain/drafts.jsonl").exists()
    transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain/model")


@pytest.mark.slow
def test_a_decoder_alone_learns_with_adapters(data, tmp_path):
    out = tmp_path / "decoder"
    more = {f"{stage}__lora_rank": 2 for stage in ("distillation",)}
    attempt(alirector, words(out, data, model="zoo:chinese-decoder", arms="corrector alirector", writing__beams=2, **more))
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"corrector", "alirector"}
    assert (out / "alirector/adapter/adapter_config.json").exists()
    *_, line, held = read_jsonl(out / "alirector/metrics.jsonl")
    assert line["loss/alignment"] > 0 and "eval_loss/alignment" in held  # of decoders the whole loss is held out


@pytest.mark.slow
def test_eight_devices_do_what_one_does(once, data, tmp_path):
    out = tmp_path / "eight"
    program = Program(
        script("alirector", *words(out, data, arms="alirector")), os.environ | virtual_devices(8) | {"JAX_PLATFORMS": "cpu"}
    )
    _, errors = program.communicate()
    assert program.returncode == 0, errors
    for stage in ("corrector", "source_first", "draft_first"):
        ours, one = (read_jsonl(folder / stage / "metrics.jsonl") for folder in (out, once))
        assert len(ours) == len(one)
        for a, b in zip(ours[:2], one[:2], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)


@pytest.mark.parametrize(("more", "told"), [
    ({"tests": ""}, "field '--tests': is missing"), ({"pairs": ""}, "field '--pairs': is missing"),
    ({"model": "zoo:target"}, "'zoo:target' corrects no Chinese"), ({"model": "nowhere"}, "nowhere"),
    ({"pairs": "EMPTY"}, "record 2, field 'target'"), ({"fcgec": "BEYOND", "arms": "plain"}, "beyond.json, record b"),
    ({"arms": "plain plain"}, "'plain' stands twice"), ({"scorer": "official_all"}, "needs the dictionaries"),
    ({"validation": 9999}, "leave none to train on"), ({"corrector.batch-size": 512}, "do not fill one batch of 512"),
    ({"model": "zoo:chinese-decoder", "arms": "copy"}, "copies from an encoder"),
    ({"arms": "plain two_pass"}, "no model/"), ({"fcgec": "BEYOND", "arms": "copy"}, "'copy' does not go on with FCGEC"),
    ({"distillation.pack-tokens": 64}, "rows of one example each"), ({"writing.beams": 2, "writing.length-penalty": 99}, "length-penalty"),
    ({"cutoff": 100}, "'--cutoff': is not read by an encoder-decoder"), ({"tests": "LONG"}, "has 602 tokens"),
    ({"model": "zoo:chinese-decoder", "arms": "corrector", "lengths.pair": 99}, "lengths': is not read by a decoder alone"),
    ({"fcgec": "GOOD", "arms": "plain", "fcgec-validation": 30}, "'--fcgec-validation': 30 of 4"),
    ({"corrector.best-of": 2, "validation": 0}, "needs --validation"), ({"tests": "SAME"}, "two files are called 'test'"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_done_is_refused(data, tmp_path, capsys, more, told):
    write_pairs(tmp_path / "train.json", load_pairs(data / "train.json")[0][:40])
    (tmp_path / "empty.json").write_text('[{"source": "我", "target": "你"}, {"source": "我", "target": " "}]')
    beyond = {"a": FCGEC["0"], "b": FCGEC["0"] | {"operation": '[{"Delete": [99]}]'}}
    (tmp_path / "beyond.json").write_text(json.dumps(beyond))
    (tmp_path / "good.json").write_text(json.dumps(FCGEC))
    (tmp_path / "long.para").write_text(f"1\t{'我' * 600}\t你\n")
    made = {"LONG": tmp_path / "long.para", "GOOD": tmp_path / "good.json", "EMPTY": tmp_path / "empty.json", "BEYOND": tmp_path / "beyond.json", "SAME": f"{data}/test.para {tmp_path}/test.para"}
    given = {"pairs": tmp_path / "train.json"} | {name: made.get(str(value), value) for name, value in more.items()}
    fails(alirector, words(tmp_path / "run", data, **given), capsys, told)
