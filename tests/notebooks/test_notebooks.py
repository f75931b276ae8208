"""The notebooks as a reader runs them: valid, stored without outputs, executed from the first cell to the last."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # else jupyter_core warns of its old folders when imported

import nbformat
from nbclient import NotebookClient

from experiments.benchmarks import gpu
from tests.small import ROOT, pairs, quads, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

NAMES = ["wrpo_tpu", "fusechat_tpu"]


def read(name):
    return nbformat.read(ROOT / f"experiments/notebooks/{name}.ipynb", as_version=nbformat.NO_CONVERT)


def cell(book, name):
    return next(cell for cell in book.cells if cell.id == name)


def executed(book, folder, monkeypatch, **sources):
    """Outputs of every cell by its id, after the cells named in `sources` were replaced; run in `folder`, on a CPU."""
    for name, text in sources.items():
        cell(book, name).source = text
    for variable, value in {
        "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu", "IPYTHONDIR": folder / "ipython", "JUPYTER_RUNTIME_DIR": folder / "jupyter",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, str(value))
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}


def shown(outputs, kind):
    """What a cell displays of one kind of content."""
    return [output.data[kind] for output in outputs if output.output_type == "display_data" and kind in output.data]


@pytest.mark.parametrize("name", NAMES)
def test_valid_explained_and_without_outputs(name):
    book = read(name)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor, book.metadata.kernelspec.name) == (4, 5, "python3")
    code = [i for i, cell in enumerate(book.cells) if cell.cell_type == "code"]
    assert all(not book.cells[i].outputs and book.cells[i].execution_count is None for i in code)
    assert all(book.cells[i - 1].cell_type == "markdown" for i in code)
    assert [cell.id for cell in book.cells if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]


@pytest.mark.slow
def test_wrpo_runs_shows_its_report_and_takes_other_checkpoints(tmp_path, monkeypatch):
    """Once with the miniatures, and the run cell again; once with a folder, ready quadruples and the page's options."""
    small_folder(tmp_path / "model", max_position_embeddings=2048)
    write(tmp_path / "quads.jsonl", quads(132))
    settings = [*gpu.SMALL_DEFAULT, "--test-per-skill=7"]  # programs that are compiled once for both
    own = ["--prompts=", "--quadruples=quads.jsonl", "--baseline=False", "--preference.optimizer.warmup-ratio=0"]
    book = read("wrpo_tpu")
    book.cells.append(nbformat.v4.new_code_cell(id="again", source="run(OUT, *SETTINGS)"))
    outputs = executed(
        book, tmp_path, monkeypatch,
        parameters=f"REPOSITORY, OUT, SETTINGS = '', 'runs/quick', {settings}",
        checkpoints=f"{cell(book, 'checkpoints').source}\nTARGET, SOURCES, OPTIONS = 'model', [], [*OPTIONS, *{own}]",
    )  # fmt: skip
    report = "\n".join(shown(outputs["report"], "text/markdown"))
    for model in ("Target", "plants-qwen", "SFT", "SFT-WRPO"):
        assert f"\n| {model} |" in report
    assert len(shown(outputs["report"], "image/png")) == 2
    assert "cpu" in outputs["devices"][-1].data["text/plain"].lower()
    assert not outputs["install"] and not outputs["drive"] and not outputs["plan"]
    again = " ".join("".join(shown(outputs["again"], "text/plain")).split())
    assert "runs/quick: finished already, nothing to do" in again
    assert "| wrpo | used | 128 |" in "\n".join(shown(outputs["run-checkpoints"], "text/markdown"))
    assert (tmp_path / "runs/quick-checkpoints/model/config.json").exists()


@pytest.mark.slow
def test_fusechat_runs_shows_its_report_and_takes_other_checkpoints(tmp_path, monkeypatch):
    """Once with the miniatures; once with a folder as pivot, chats from a file and the page's options."""
    small_folder(tmp_path / "model", max_position_embeddings=2048)
    write(tmp_path / "chats.jsonl", [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in pairs(128)])
    settings = ["--chats-per-skill=3", "--test-per-skill=1", "--sources", "zoo:qwen-source", "zoo:llama-source"]
    train = ["--arms=pairwise", "--train.epochs=1", "--train.optimizer.warmup-ratio=0"]
    book = read("fusechat_tpu")
    outputs = executed(
        book, tmp_path, monkeypatch,
        parameters=f"REPOSITORY, OUT, SETTINGS = '', 'runs/quick', {settings + train}",
        checkpoints=f"{cell(book, 'checkpoints').source}\nPIVOT, SOURCES = 'model', ['zoo:qwen-source']\n"
        f"OPTIONS = [*OPTIONS, *{[*train, '--align.workers=0']}]",
    )  # fmt: skip
    report = "\n".join(shown(outputs["report"], "text/markdown"))
    for model in ("target", "qwen-source", "with-qwen-source", "with-llama-source", "merged by sce"):
        assert f"\n| {model} |" in report
    assert len(shown(outputs["report"], "image/png")) == 1
    assert "| chats | 128 |" in "\n".join(shown(outputs["run-checkpoints"], "text/markdown"))
    assert (tmp_path / "runs/quick-checkpoints/targets/with-qwen-source/config.json").exists()
