"""FuseChat-3.0, InfiFPO and FuseRL from prompts to a model: what each stage leaves, ready records, wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import fusechat3, fuserl, infifpo
from fusion_jax.jsonl import Record, read_jsonl
from tests.small import attempt, fails, pairs, responses, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

SHORT = [
    "--sft-share", "0.4", "--sft.batch-size", "4", "--sft.epochs", "1", "--preference.batch-size", "4",
    "--preference.epochs", "1", "--held-out", "0.2", "--sample.num-samples", "2", "--sample.max-new-tokens", "4",
    "--eval-new-tokens", "4", "--text.tokens.max-length", "96", "--text.tokens.max-prompt-length", "64",
    "--eval-samples", "0", "--verifier", "answer", "--accuracy", "answer", "--sft.remat", "none",
    "--preference.remat", "none", "--sft.optimizer.warmup-ratio", "0", "--preference.optimizer.warmup-ratio", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small") / "model")


def given(tmp_path: Path, target: Path, count: int = 24) -> list[str]:
    tests = write(tmp_path / "tests.jsonl", [{"prompt": "What is 1 + 1?", "answer": "2"}])
    data = write(tmp_path / "responses.jsonl", responses(count))
    return [*SHORT, "--target", str(target), "--responses", str(data), "--test-prompts", str(tests)]


def models(out: Path) -> list[str]:
    return list(json.loads((out / "results.json").read_text()))


def test_fusechat3_from_responses_to_a_model(tmp_path, target):
    out = tmp_path / "run"
    args = [
        *given(tmp_path, target),
        "--out",
        str(out),
        "--check-answers",
        "True",
        "--sft-shares",
        "odd=0.5",
        "even=0.25",
    ]
    attempt(fusechat3, args)
    taught, found = read_jsonl(out / "sft.jsonl"), read_jsonl(out / "pairs.jsonl")
    assert (len(taught), len(found)) == (9, 15)
    assert [t["from"] for t in taught[0]["conversations"]] == ["human", "gpt"] and taught[0]["source_model"] == "b"
    assert all(set(p) >= {"source_model", "prompt", "chosen", "rejected"} for p in found)
    assert {p["source_model"] for p in found} == {"b"} and found[0]["rewards"] == pytest.approx([0.81, 0.51])
    assert all(r["passed"] is (r["response"] == r["answer"]) for r in read_jsonl(out / "checked.jsonl"))
    report = (out / "report.md").read_text()
    assert "| even | a | 24 | 0.500 |" in report and models(out) == ["Target", "SFT", "FuseChat"]
    ready = [
        "--sft-data",
        str(out / "sft.jsonl"),
        "--pair-data",
        str(out / "pairs.jsonl"),
        "--out",
        str(tmp_path / "again"),
    ]
    attempt(fusechat3, [*SHORT, "--target", str(target), *ready])
    weights = [(folder / "dpo/model/model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("loss", ["dpo", "rloo"])
def test_fuserl_from_responses_to_a_model(tmp_path, target, loss):
    out = tmp_path / "run"
    attempt(fuserl, [
        *given(tmp_path, target), "--out", str(out), "--fuserl.loss", loss,
        "--weights.temperature", "0.05",
    ])  # fmt: skip
    taught, found = read_jsonl(out / "fuse_sft.jsonl"), read_jsonl(out / "fuse_po.jsonl")
    assert all(
        len(r["responses"]) == 3 and sum(r["weights"]) == pytest.approx(1.0) for r in taught
    )  # a text stands twice
    assert all([s["source_model"] for s in r["sources"]] == ["a", "b"] for r in found)
    assert ("advantages" in found[0]["sources"][0]) is (loss == "rloo")
    assert models(out) == ["Target", "SFT", "FuseSFT", "FuseRL"]
    report = (out / "report.md").read_text()
    assert "## Mean weight of each source" in report
    first = read_jsonl(out / "fuse_po" / "metrics.jsonl")[0]
    assert first["weight/source_1"] + first["weight/source_2"] == pytest.approx(1.0)


@pytest.mark.parametrize("loss", ["dpo", "wrpo"])
def test_infifpo_from_responses_to_a_model(tmp_path, target, loss):
    out, source = tmp_path / "run", small_folder(tmp_path / "a", hidden_size=48)
    attempt(infifpo, [
        *given(tmp_path, target, 32), "--sources", str(source), str(target), "--out", str(out), "--infifpo.loss", loss,
        "--target-samples", "2", "--verifier", "graded", "--sample.temperature", "2",
    ])  # fmt: skip
    names = [source.name, target.name]
    values = [read_jsonl(out / "values" / f"{name}.jsonl") for name in names]
    assert all(len(v) == len(read_jsonl(out / "pairs.jsonl")) for v in values)
    assert all(logprob < 0 for v in values for r in v for logprob in r["logprobs"])
    first = read_jsonl(out / "infifpo" / "metrics.jsonl")[0]
    assert {"clip_rate/chosen", "selected_source/0/chosen", "reference_margin"} <= set(first)
    assert first["reference_margin"] >= first["initial_margin"] - 1e-6  # clipping never lowers it
    assert models(out) == ["Target", "SFT", "SFT-DPO", "SFT-InfiFPO"]


def scored(out: Path, names: list[str]) -> list[Record]:
    """The pairs and values of a run as released records have them."""
    values = [read_jsonl(out / "values" / f"{name}.jsonl") for name in names]
    records = []
    for pair, *of_sources in zip(read_jsonl(out / "pairs.jsonl"), *values, strict=True):
        record = dict(pair)
        for place, side in enumerate(("chosen", "rejected")):
            record[f"fuse_{side}_logps"] = [v["logprobs"][place] for v in of_sources]
            record[f"fuse_mean_{side}_logps"] = [v["logprobs"][place] / v["tokens"][place] for v in of_sources]
        records.append(record)
    return records


def test_infifpo_from_released_records_trains_the_same_model(tmp_path, target, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    attempt(infifpo, [
        *given(tmp_path, target, 32), "--sources", str(target), "--out", str(out), "--target-samples", "2",
        "--verifier", "graded", "--sample.temperature", "2", "--baseline", "False",
    ])  # fmt: skip
    records = scored(out, [target.name])
    data = write(tmp_path / "pairs.jsonl", records)
    common = [*SHORT, "--target", str(out / "sft" / "model"), "--pair-data", str(data), "--sources", "NOT-THERE"]
    attempt(infifpo, [*common, "--baseline", "False", "--out", str(again)])
    weights = [(folder / "infifpo/model/model.safetensors").read_bytes() for folder in (out, again)]
    assert weights[0] == weights[1]
    for side, value, told in (
        ("fuse_mean_rejected_logps", [-1.0, -2.0], ["record 4", "has 2 numbers, fuse_mean_chosen_logps has 1"]),
        ("fuse_mean_chosen_logps", [0.5], ["record 4", "finite numbers, none above 0"]),
        ("fuse_mean_chosen_logps", None, ["record 4", "'fuse_mean_chosen_logps': is missing"]),
    ):
        write(data, [*records[:3], {**records[3], side: value}, *records[4:]])
        fails(infifpo, [*common, "--out", str(tmp_path / "bad")], capsys, "pairs.jsonl", *told)
    both = {f"fuse_mean_{side}_logps": [-1.0, -2.0] for side in ("chosen", "rejected")}
    write(data, [*records[:3], {**records[3], **both}, *records[4:]])
    told = ["record 4", "fuse_mean_chosen_logps", "2 sources, records before it of 1"]
    fails(infifpo, [*common, "--out", str(tmp_path / "bad")], capsys, "pairs.jsonl", *told)
    attempt(infifpo, [*common, "--baseline", "False", "--on-bad", "skip", "--out", str(tmp_path / "skipped")])
    assert "2 sources, records before it of 1" in (tmp_path / "skipped" / "report.md").read_text()
    refused = [*common, "--infifpo.loss", "wrpo", "--out", str(tmp_path / "bad")]
    fails(infifpo, refused, capsys, "--infifpo.loss", "--pair-data has pairs")


def test_what_does_not_go_together(tmp_path, capsys, target):
    out = ["--out", str(tmp_path / "o"), "--target", str(target)]
    data = str(write(tmp_path / "pairs.jsonl", pairs(4)))
    fails(
        fusechat3,
        [*out, "--pair-data", data, "--check-answers", "True"],
        capsys,
        "--check-answers",
        "--pair-data skips",
    )
    fails(fusechat3, [*out, "--sft-data", data], capsys, "--sft-data", "belongs to --pair-data")
    fails(fusechat3, [*out, "--sft-shares", "math"], capsys, "--sft-shares", "is no share of a domain")
    fails(fusechat3, [*out, "--source-top-p", "0.5"], capsys, "--source-top-p", "has 1 values for 3 sources")
    fails(fuserl, [*out, "--weights.temperature", "0"], capsys, "temperature")
    fails(infifpo, [*out, "--target-samples", "0"], capsys, "--target-samples")
    given = ["--responses", str(write(tmp_path / "responses.jsonl", responses(8)))]
    fails(infifpo, [*out, *given], capsys, "--sources", "llama-source", "the responses are of a, b")


def test_one_step_of_warm_up_teaches_nothing(tmp_path, capsys, target):
    """And rewards that are given need no answers, where the target writes nothing that is rewarded."""
    bare = [{name: value for name, value in r.items() if name != "answer"} for r in responses(24)]
    data = write(tmp_path / "responses.jsonl", bare)
    options = [*SHORT, "--target", str(target), "--responses", str(data), "--out", str(tmp_path / "run")]
    options[options.index("--sft.batch-size") + 1] = "8"
    options[options.index("--sft.optimizer.warmup-ratio") + 1] = "0.1"
    fails(fuserl, options, capsys, "warmup_ratio", "has one step", "nothing would be learnt")


@pytest.mark.parametrize(("module", "changes", "told"), [
    (fusechat3, {"reward": "high"}, "'reward': is 'high', not a number"), (fuserl, {"reward": True}, "'reward'"),
    (infifpo, {"source_model": 3}, "'source_model'"), (fusechat3, {"response": None}, "'response'"),
])  # fmt: skip
def test_broken_responses(tmp_path, capsys, target, module, changes: dict[str, Any], told):
    records = responses(4)
    records[2] |= changes
    file = tmp_path / "responses.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    out = tmp_path / "o"
    fails(module, ["--target", str(target), "--responses", str(file), "--out", str(out)], capsys, "record 3", told)
    assert not out.exists()


def test_the_same_text_under_two_ids_is_in_one_part_only(tmp_path, target):
    records = responses(24)
    twins = [r | {"prompt_id": f"twin {r['prompt_id']}"} for r in records[:8]]
    data, out = write(tmp_path / "twins.jsonl", [*records, *twins]), tmp_path / "run"
    tests = write(tmp_path / "tests.jsonl", [{"prompt": "What is 1 + 1?", "answer": "2"}])
    args = ["--target", str(target), "--responses", str(data), "--test-prompts", str(tests), "--out", str(out)]
    attempt(fusechat3, [*SHORT, *args])
    kept = [r["prompt_id"] for name in ("sft", "pairs") for r in read_jsonl(out / f"{name}.jsonl")]
    assert len(kept) == len(set(kept)) == 24 and not any(name.startswith("twin") for name in kept)
    assert "| prompts | prompt: the same text under another id | 2 |" in (out / "report.md").read_text()


def test_prompts_that_pairs_have_are_left_out_of_ready_sft_data(tmp_path, target):
    some = pairs(24)
    taught = [{"prompt": p["prompt"], "response": p["chosen"]} for p in some[:12]]
    files = [str(write(tmp_path / f"{n}.jsonl", r)) for n, r in (("sft", taught), ("pairs", some[6:]))]
    out = tmp_path / "run"
    attempt(
        fusechat3, [*SHORT, "--target", str(target), "--sft-data", files[0], "--pair-data", files[1], "--out", str(out)]
    )
    assert "| sft | prompt: among the preferences, too | 6 |" in (out / "report.md").read_text()


def test_too_few_pairs_are_told_before_any_training(tmp_path, capsys, target):
    args, outs = given(tmp_path, target), [["--out", str(tmp_path / name)] for name in "abc"]
    gap = [*args, *outs[0], "--rules.least-gap", "0.35"]
    told = fails(fusechat3, gap, capsys, "--preference", "prompt: no pair 14", "Look at the reasons beside")
    assert "source: gap too small" in told and not (tmp_path / "a" / "sft").exists()
    least = [*args, *outs[1], "--weights.min-gap", "0.9"]
    fails(fuserl, least, capsys, "no source gives a preference 14", "--weights.min-gap")
    best = [*args, *outs[2], "--preference.best-of", "2", "--held-out", "0"]
    fails(fusechat3, best, capsys, "best-of", "needs held-out records")


def test_whether_a_response_passed_is_true_or_false(tmp_path, capsys, target):
    records = [r | {"passed": int(r["response"] == r["answer"])} for r in responses(24)]
    data, out = write(tmp_path / "responses.jsonl", records), ["--out", str(tmp_path / "o")]
    attempt(fusechat3, [*SHORT, "--target", str(target), "--responses", str(data), *out])
    assert all(r["passed"] is (r["response"] == r["answer"]) for r in read_jsonl(tmp_path / "o" / "checked.jsonl"))
    records[2]["passed"] = "false"
    data = write(tmp_path / "broken.jsonl", records)
    fails(fusechat3, ["--responses", str(data)], capsys, "record 3", "'passed': is 'false', neither true nor false")
