"""The coverage report and the alignment benchmark as a user runs them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from experiments import align_report
from experiments.benchmarks import align, vocabulary
from fusion_jax.settings import run as run_experiment
from tests.small import run, write


def fails(capsys: pytest.CaptureFixture[str], *args: str, module: Any = align_report) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_experiment(module.Settings, module.main, description="", args=args)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip()


def test_report_of_files_and_languages_in_both_directions(tmp_path):
    write(tmp_path / "a.jsonl", [
        {"text": "Sort the letters: c, a, b", "language": "en"}, {"text": "模型融合 | `e\u0301`", "language": "zh"},
        {"text": "no language", "language": None},
    ])  # fmt: skip
    (tmp_path / "b.txt").write_text("add 12 and 30\n\nreverse a b\n", encoding="utf-8")
    done = run(
        "align_report", "--texts", "a.jsonl", "b.txt", "--both", "True", "--out", "report", "--source",
        "zoo:llama-source", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "zoo:llama-source ← zoo:target" in done.stdout and "| a.jsonl |" in done.stdout
    folder = tmp_path / "report"
    files = {"config.json", "report.md", "report.json", "coverage.png", "coverage_reversed.png", "finished.json"}
    assert files <= {p.name for p in folder.iterdir()}
    told = json.loads((folder / "report.json").read_text())
    assert [d["pivot"] for d in told["directions"]] == ["zoo:target", "zoo:llama-source"]
    for direction in told["directions"]:
        groups = {g["group"]: g for g in direction["groups"]}
        assert list(groups) == ["en", "zh", "a.jsonl", "b.txt", "all"] and groups["b.txt"]["texts"] == 2
        assert all(abs(sum(g["rules"].values()) - 1) < 1e-9 for g in groups.values())
    report = (folder / "report.md").read_text()
    told_first, _, found = report.partition("Shares of the pivot's tokens")
    assert "% of the tokens of zoo:target get a row of zoo:llama-source" in told_first.splitlines()[2]
    tables = [line for line in found.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} <= {11, 8, 6} and "![coverage_reversed](coverage_reversed.png)" in report


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fusellm", "map": "mined"}, {"variant": "fusellm", "map": "exact", "align": "byte_offsets"},
        {"variant": "chat_v1"}, {"map": "exact", "hard": True}, {"one_to_many": False, "max_texts": 5},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_rules(options, tmp_path, capsys):
    """A vocabulary file beside a model of the zoo, on the zoo's texts."""
    tokens = [*(bytes([i]) for i in range(256)), b"th", b"he", b" the", b"er", b"or"]
    lines = (base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))
    (tmp_path / "a.tiktoken").write_bytes(b"".join(lines))
    settings = align_report.Settings(source=str(tmp_path / "a.tiktoken"), out=str(tmp_path / "out"), **options)
    align_report.main(settings)
    (direction,) = json.loads((tmp_path / "out" / "report.json").read_text())["directions"]
    (group,) = direction["groups"]
    assert group["group"] == "zoo" and 0 < group["taken"] < 1
    if options.get("map") == "exact":
        assert direction["unmapped_types"] == direction["inexact_types"] > 0


def test_images_of_another_text_are_shown_by_map(tmp_path):
    """A byte-level source of a SentencePiece-like pivot, as raw strings: nothing is unmapped, and much goes astray."""
    told = {}
    for pieces in ("raw", "bytes"):
        out = tmp_path / pieces
        align_report.main(align_report.Settings(
            pivot="zoo:gemma-source", source="zoo:target", variant="fusellm", map="mined", pieces=pieces, out=str(out),
            max_texts=8, both=True,
        ))  # fmt: skip
        told[pieces] = json.loads((out / "report.json").read_text())["directions"]
    for raw, new in zip(told["raw"], told["bytes"], strict=True):
        assert list(raw["images"]) == ["exact", "mined", "statistics"]
        assert raw["images"]["mined"]["unmapped"] == 0.0 and raw["images"]["mined"]["altered"] > 0.0
        assert raw["groups"][0]["altered"] == raw["images"]["mined"]["altered"] >= new["images"]["mined"]["altered"]
        assert new["images"]["exact"]["altered_types"] == 0.0
        assert all(e["piece"] and e["image_piece"] for e in raw["images"]["mined"]["examples"])
    report = (tmp_path / "raw" / "report.md").read_text()
    assert "pieces compared as raw" in report and "| mined |" in report and "Tokens whose image is another text" in report
    assert "| unmapped | other text |" in report


def test_benchmark_of_vocabularies(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Sort 12 letters: c, é 的\n", encoding="utf-8")
    write(tmp_path / "b.jsonl", [{"question": "add 12", "answer": ["and 30"]}])
    files = (str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))
    out = tmp_path / "out.jsonl"
    vocabulary.main(vocabulary.Settings(texts=files, maps=("exact", "mined", "statistics"), out=str(out), alignments=True))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["map"], r["compared as"]) for r in rows[:6]] == [
        (kind, mode) for kind in ("exact", "mined", "statistics") for mode in ("raw", "bytes")
    ]
    for row in rows:
        assert abs(row["same text"] + row["other text"] + row["no image"] - 1) < 1e-9
        assert row["map"] != "exact" or row["compared as"] == "raw" or row["other text"] == 0.0
    told = capsys.readouterr().out
    assert "| pivot | source | map |" in told and "| pivot | source | compared as | a.txt | b.jsonl |" in told
    assert "'--tokenizers': there are 1. Give two" in fails(capsys, "--tokenizers", "zoo:target", module=vocabulary)
    told = fails(capsys, "--texts", str(tmp_path / "none.txt"), module=vocabulary)
    assert "none.txt: cannot be read as text" in told


def test_bad_input_ends_with_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert "'--hard': goes with chat_v2 and the exact map only" in fails(capsys, "--hard", "True", *out)
    assert "'--max-length': 0 is out of range. Give 1 or more" in fails(capsys, "--max-length", "0", *out)
    assert "nowhere, field '--pivot': there is no such folder" in fails(capsys, "--pivot", "nowhere", *out)
    assert "'--worst': -3 is out of range. Give 0 or more" in fails(capsys, "--worst", "-3", *out)
    assert "the zoo has no model 'x'" in fails(capsys, "--source", "zoo:x", *out)
    assert "field '--source': holds no tokenizer" in fails(capsys, "--source", str(tmp_path), *out)
    assert "x.tiktoken: there is no such file" in fails(capsys, "--source", "x.tiktoken", *out)
    write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b", "language": 3}])
    told = fails(capsys, "--texts", str(tmp_path / "a.jsonl"), *out)
    assert "a.jsonl, record 2, field 'language': is int, not text" in told
    write(tmp_path / "b.jsonl", [])
    assert "b.jsonl" in fails(capsys, "--texts", str(tmp_path / "b.jsonl"), *out)
    assert not (tmp_path / "out").exists()


def test_benchmark_compares_equal_results(tmp_path, capsys):
    out = tmp_path / "figures.jsonl"
    settings = {"length": 60, "repeats": 1, "sample": 10, "out": str(out)}
    align.main(align.Settings(**settings))
    align.main(align.Settings(**settings, variant="chat_v1", source="zoo:gemma-source"))
    table = capsys.readouterr().out
    assert "chat_v1, 60 x" in table and "extrapolated from" in table
    assert [json.loads(line)["equal"] for line in out.read_text().splitlines()] == [
        "all ranges",
        "10 images of the sample",
    ]
    assert "'--variant': is not re-created" in fails(capsys, "--variant", "chat_v2", module=align)
    assert "pivot tokens. Give at least 99999" in fails(capsys, "--length", "99999", module=align)
    assert "every piece of the source" in fails(capsys, "--source", "zoo:target", "--length", "9", module=align)
