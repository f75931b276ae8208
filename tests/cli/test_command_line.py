"""The command line: spellings that are taken, mistakes that get the nearest name, ranges, and the help."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from experiments import (
    align_report,
    cache_teacher,
    cool_fusion,
    distil,
    dpo,
    fusechat,
    fusechat3,
    fusellm,
    fuserl,
    generate,
    gsm8k_responses,
    infifpo,
    inspect_data,
    merge,
    profuser,
    prune,
    reward_model,
    role_interact,
    seft,
    sft,
    wrpo,
    zoo,
)
from experiments.sweeps import merge as merge_sweep
from experiments.sweeps import run as sweeps
from fusion_jax.command_line import as_arguments, read
from fusion_jax.errors import InputError
from fusion_jax.options import Files, FreeTexts, Positional, options_of, sentences
from fusion_jax.plan.command import PlanOptions
from fusion_jax.rewards.verifiers import VERIFIERS
from fusion_jax.settings import bounded, parse
from fusion_jax.settings import run as run_experiment
from tests.small import fails

EXPERIMENTS = [
    align_report, cache_teacher, cool_fusion, distil, dpo, fusechat, fusechat3, fusellm, fuserl, generate,
    gsm8k_responses, infifpo, inspect_data, merge, merge_sweep, profuser, prune, reward_model, role_interact,
    seft, sft, sweeps, wrpo, zoo,
]  # fmt: skip
ONES = {"tiny": gsm8k_responses.Settings("", "")}


def presets_of(module: Any) -> dict[str, Any]:
    return getattr(module, "PRESETS", None) or (
        ONES if module is gsm8k_responses else {"tiny": module.Settings()}
    )  # fmt: skip


@dataclass(frozen=True)
class Inner:
    """Nested numbers."""

    rate: float = 0.1
    """How fast."""
    batch_size: int = 4

    def __post_init__(self) -> None:
        bounded(self, "rate", least=0)


@dataclass(frozen=True)
class Some:
    """A few settings."""

    basic: ClassVar = ("inner.rate", "kind")

    file: Positional[str] = ""
    out: str = "runs/some"
    resume: bool = False
    fast: bool = True
    kind: Literal["plain", "squared"] = "plain"
    """Which kind."""
    kinds: tuple[Literal["plain", "squared"], ...] = ("plain",)
    sizes: tuple[int, ...] = (1,)
    models: Files = ("a",)
    texts: FreeTexts = ()
    count: int | None = None
    inner: Inner = Inner()
    other: Inner = Inner()


SOME = {"tiny": Some(), "llama3-8b": Some(kind="squared"), "llama2-7b": Some()}


@pytest.mark.parametrize(
    "args, field, value",
    [
        (["--resume"], "resume", True), (["--resume", "auto"], "resume", True), (["--resume=auto"], "resume", True),
        (["--resume", "True"], "resume", True), (["--resume", "false"], "resume", False), (["--no-resume"], "resume", False),
        (["--resume", "--out", "x"], "resume", True), (["--resume", "recipe.yml"], "file", "recipe.yml"),
        (["--no-fast"], "fast", False), (["--fast", "0"], "fast", False), (["–resume"], "resume", True),
        (["--kinds", "plain,squared"], "kinds", ("plain", "squared")), (["--sizes", "1,2", "3"], "sizes", (1, 2, 3)),
        (["--models", "a,b"], "models", ("a", "b")), (["--models", "a", "b"], "models", ("a", "b")),
        (["--texts", "one, two", "three"], "texts", ("one, two", "three")), (["--texts"], "texts", ()),
        (["--count", "3"], "count", 3), (["--count", "None"], "count", None), (["--out", "-x"], "out", "-x"),
        (["--preset", "llama3-8b"], "kind", "squared"), (["--preset=llama3-8b"], "kind", "squared"),
        (["--inner.rate", "1", "--inner.rate", "2"], "inner", Inner(rate=2.0)), (["--inner.batch_size", "5"], "inner", Inner(0.1, 5)),
        (["--kinds", "plain", "--", "file.yml"], "file", "file.yml"),
    ],
    ids=str,
)  # fmt: skip
def test_spellings_that_are_taken(args, field, value):
    assert getattr(parse(SOME, args), field) == value


def test_a_path_that_holds_a_comma_stays_whole(tmp_path):
    path = tmp_path / "a,b.jsonl"
    path.touch()
    assert parse(SOME, ["--models", str(path), "c,d"]).models == (str(path), "c", "d")


@pytest.mark.parametrize(
    "args, told",
    [
        (["--preset", "lama3-8b"], "field '--preset': no preset is called 'lama3-8b'. Did you mean 'llama3-8b'?"),
        (["--preset"], "field '--preset': needs a name."), (["--preset", "--out"], "needs a name"),
        (["--presset", "x"], "field '--presset': there is no such option. Did you mean --preset?"),
        (["--resme"], "Did you mean --resume?"), (["-resume"], "field '-resume': there is no such option. Did you mean --resume?"),
        (["--rate", "3"], "Did you mean --inner.rate or --other.rate?"), (["--inner.rat", "3"], "Did you mean --inner.rate?"),
        (["--outt=x"], "field '--outt': there is no such option. Did you mean --out?"),
        (["--inner.rate", "fast"], "field '--inner.rate': 'fast' is not a number. Give a number."),
        (["--inner.batch-size", "1.5"], "field '--inner.batch-size': '1.5' is not a whole number"),
        (["--count", "1,2"], "field '--count': '1,2' is not a whole number. Give a whole number: it takes one, not a list"),
        (["--inner.rate", "-1"], "field '--inner.rate': -1.0 is out of range. Give 0 or more."),
        (["--other.rate", "nan"], "field '--other.rate': nan is out of range"), (["--other.rate", "inf"], "field '--other.rate': inf"),
        (["--sizes", "1", "x"], "field '--sizes': 'x' is not a whole number"), (["--sizes"], "field '--sizes': is given without a value"),
        (["--inner.batch-size", "9" * 5000], "field '--inner.batch-size'"), (["--sizes", str(2**31)], "field '--sizes': 2147483648 is out of range"),
        (["--kind", "plan"], "field '--kind': 'plan' is not one of its choices. Did you mean 'plain'? Choose one of plain, squared."),
        (["--kinds", "plain,cubed"], "field '--kinds': 'cubed' is not one of its choices"),
        (["--resume", "Treu"], "field '--resume': 'Treu' is neither True nor False"), (["--fast", "auto"], "field '--fast': 'auto' is neither"),
        (["--out"], "field '--out': needs a value. Write --out TEXT"), (["--out", "--resume"], "field '--out': needs a value"),
        (["--models", "a", "--models", "b"], "field '--models': is given twice"), (["--models", "a,,b"], "field '--models': one of the values is empty"),
        (["--out", "a\0b"], "field '--out': 'a\\x00b' holds characters that are no text"), (["--out", "a\udcff"], "field '--out': "),
        (["f", "--out", "a", "b"], "'b' stands alone. --out takes one value"),
        (["a.yml", "llama3-8b"], "'llama3-8b' stands alone. Did you mean --preset llama3-8b?"),
        (["a.yml", "out=x"], "'out=x' stands alone. Did you mean --out=x?"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_are_told_in_one_line(args, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_experiment(Some, lambda s: None, presets=SOME, description="", args=args)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1 and len(line) < 500
    assert told in line


@pytest.mark.parametrize("field, told", [
    ("rate", "field '--inner.rate or --other.rate'"), ("kind", "field '--kind'"), ("inner.batch_size", "field '--inner.batch-size'"),
    ("nothing", "field 'nothing'"), ("--own", "field '--own'"),
])  # fmt: skip
def test_an_error_of_a_setting_names_its_option(field, told, capsys):
    def main(s: Some) -> None:
        raise InputError("is wrong", field=field)

    with pytest.raises(SystemExit):
        run_experiment(Some, main, presets=SOME, description="", args=[])
    assert told in capsys.readouterr().err


def test_an_error_names_the_option_that_was_given_and_leaves_fields_of_files_alone(capsys):
    def main(s: Some) -> None:
        raise InputError("is wrong", field="rate", **({"file": "a.jsonl"} if s.fast else {}))

    for args, told in ([], "a.jsonl, field 'rate'"), (["--no-fast", "--other.rate", "2"], "field '--other.rate':"):
        with pytest.raises(SystemExit):
            run_experiment(Some, main, presets=SOME, description="", args=args)
        assert told in capsys.readouterr().err


def options(module: Any) -> list[Any]:
    return list(options_of(next(iter(presets_of(module).values()))))


def test_every_option_of_every_experiment_has_a_sentence():
    for module in EXPERIMENTS:
        missing = [o.name for o in options(module) if not o.help.endswith(".")]
        assert not missing, (module.__name__, missing)
    assert all(sentences(PlanOptions).values()) and len(sentences(PlanOptions)) == 4
    for name in ("plan", "preflight"):
        settings = importlib.import_module(f"tpu_scripts.{name}").Settings()
        assert not [o.name for o in options_of(settings) if not o.help.endswith(".")]


def shown(module: Any, argument: str, capsys: Any, monkeypatch: Any) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    beside = PlanOptions() if hasattr(module, "parts") else None
    with pytest.raises(SystemExit) as stopped:
        read(presets_of(module), [argument], description=module.__doc__, beside=beside)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("module", EXPERIMENTS, ids=lambda m: m.__name__)
def test_help_is_short_and_help_all_is_whole(module, capsys, monkeypatch):
    short, whole = (shown(module, argument, capsys, monkeypatch) for argument in ("-h", "--help-all"))
    assert short == shown(module, "--help", capsys, monkeypatch)
    assert short.count("\n") <= (77 if module in (fusechat3, fuserl, infifpo) else 62) and "--help-all" in short
    words = whole.split()
    for option in options(module):
        assert option.flag in words or option.metavar in words
        assert all(choice in whole for choice in option.choices)
    assert len(presets_of(module)) == 1 or all(f" {p}" in short for p in presets_of(module))


def test_choices_of_names_that_other_modules_define(capsys, monkeypatch):
    text = shown(wrpo, "--help", capsys, monkeypatch)
    assert text.index("--target MODEL") < text.index("--resume") < text.index("--verifier NAME")
    assert all(name in text for name in VERIFIERS)
    assert "--loss.beta" not in text and "--preference.remat" not in text


@pytest.mark.parametrize("module", [
    align_report, cache_teacher, distil, dpo, fusechat, fusellm, generate, gsm8k_responses, inspect_data, sft, wrpo,
], ids=lambda m: m.__name__)  # fmt: skip
def test_help_says_what_files_of_records_hold(module, capsys, monkeypatch):
    for argument in ("--help", "--help-all"):
        assert "\nData" in shown(module, argument, capsys, monkeypatch)


def test_help_says_what_each_verifier_asks_for(capsys, monkeypatch):
    for argument, takers in ("--help", "--verifier, --accuracy: "), ("--help-all", "--accuracy, --verifier: "):
        text = " ".join(shown(wrpo, argument, capsys, monkeypatch).split())
        told = text[text.index("values of --") :]
        assert takers in told and all(f"{name} (" in told for name in VERIFIERS), argument


def test_numbers_of_a_few_values_are_numbers():
    """seft's labels are 2 or 3."""
    assert parse(seft.PRESETS, ["--revising.rules.labels", "3"]).revising.rules.labels == 3
    with pytest.raises(InputError, match=r"^field '--revising.rules.labels': '4' is not one of its choices"):
        parse(seft.PRESETS, ["--revising.rules.labels", "4"])


OUT_OF_RANGE = [
    (wrpo, "--seed", "-1"), (wrpo, "--seed", str(2**32)), (wrpo, "--preference.seed", "-5"), (fusellm, "--seed", "-1"),
    (fusechat, "--seed", "-1"), (generate, "--seed", "-1"), (zoo, "--seed", "-1"), (gsm8k_responses, "--seed", "-1"),
    (gsm8k_responses, "--steps", "0"), (gsm8k_responses, "--vocab-size", "1"), (sweeps, "--seed", "-1"),
    (dpo, "--train.seed", "-1"), (dpo, "--loss.beta", "0"), (dpo, "--loss.beta", "nan"), (dpo, "--loss.gamma", "-1"),
    (dpo, "--loss.label-smoothing", "0.7"), (dpo, "--loss.sft-weight", "-1"), (wrpo, "--wrpo.alpha", "1.5"),
    (wrpo, "--wrpo.beta", "-1"), (wrpo, "--wrpo.label-smoothing", "-0.1"), (wrpo, "--preference.epochs", "inf"),
    (wrpo, "--preference.optimizer.learning-rate", "inf"), (wrpo, "--sft.optimizer.warmup-ratio", "2"),
    (wrpo, "--sft.bucket-window", "0"), (wrpo, "--sft.mesh-fsdp", "-2"), (wrpo, "--text.tokens.max-length", "0"),
    (wrpo, "--text.tokens.max-prompt-length", "-1"), (wrpo, "--sample.temperature", "nan"), (wrpo, "--sample.top-k", "-1"),
    (wrpo, "--hosts.count", "0"), (wrpo, "--hosts.index", "-1"), (wrpo, "--hosts.patience", "nan"),
    (wrpo, "--tolerance", "nan"), (wrpo, "--prompts-per-skill", str(2**31)), (fusechat, "--density", "1.5"),
    (fusechat, "--topk", "nan"), (fusellm, "--align.workers", "100000"), (inspect_data, "--count", "0"),
    (inspect_data, "--start", "-1"), (align_report, "--max-texts", "-1"), (merge, "--shard-gb", "nan"),
    (merge, "--shard-gb", "inf"), (merge, "--devices", "-2"), (zoo, "--batch-size", "0"), (zoo, "--test-prompts", "0"),
]  # fmt: skip


@pytest.mark.parametrize("module, option, value", OUT_OF_RANGE, ids=lambda v: getattr(v, "__name__", v))
def test_values_out_of_range_name_the_whole_option(module, option, value):
    with pytest.raises(InputError, match=f"^field '{option}': .*out of range"):
        parse(presets_of(module), [option, value])


@pytest.mark.parametrize("module, args, told", [
    (wrpo, ["--verifier", "gsm8"], "field '--verifier': 'gsm8' is not one of its choices. Did you mean 'gsm8k'?"),
    (fusechat, ["--merges", "sce,tie"], "field '--merges': 'tie' is not one of its choices. Did you mean 'ties'?"),
    (fusechat, ["--arms", "Pairwise"], "field '--arms': 'Pairwise' is not one of its choices. Did you mean 'pairwise'?"),
    (fusellm, ["--arms", "CLM,fusellm"], "field '--arms': 'fusellm' is not one of its choices"),
    (merge_sweep, ["--methods", "tie"], "field '--methods': 'tie' is not one of its choices. Did you mean 'ties'?"),
    (dpo, ["--text.tokens.truncation-mode", "middle"], "field '--text.tokens.truncation-mode': 'middle'"),
    (wrpo, ["--sources", ""], "field '--sources': one of the values is empty"), (wrpo, ["--sources"], "is given without a value"),
])  # fmt: skip
def test_names_are_checked_when_they_are_read(module, args, told):
    with pytest.raises(InputError) as error:
        parse(presets_of(module), args)
    assert told in str(error.value)


def test_a_list_of_known_values_can_be_emptied():
    """By one word, which the command of a report has, too."""
    presets = presets_of(prune)
    assert parse(presets, ["--compared", "none", "--shares", "none"]) == replace(presets["tiny"], compared=(), shares=())
    options = {option.name: option for option in options_of(replace(presets["tiny"], compared=(), shares=()))}
    assert as_arguments(options["compared"]) == ["--compared", "none"]
    assert as_arguments(options["shares"]) == ["--shares", "none"]
    assert parse(presets_of(wrpo), ["--sources", "none"]).sources == ()
    assert parse(presets_of(seft), ["--baselines", "none"]).baselines == ("none",)
    with pytest.raises(InputError, match="'none' is not one of its choices"):
        parse(presets, ["--compared", "none", "layers"])


def test_nothing_is_made_by_a_refused_command(tmp_path, capsys):
    fails(
        wrpo,
        ["--out", str(tmp_path / "run"), "--seed", "-1"],
        capsys,
        "field '--seed': -1 is out of range. Give 0 or more",
    )
    fails(
        wrpo, ["--out", str(tmp_path / "run"), "--seeds", "1,2"], capsys, "field '--seeds': '1,2' is not a whole number"
    )
    assert not list(Path(tmp_path).iterdir())
