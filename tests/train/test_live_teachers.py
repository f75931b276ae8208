"""Live teachers: the rows, opinions, examples and training of stored ones, asked for a batch at a time."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from fusion_jax.align.classes import CLASSES, token_classes
from fusion_jax.align.settings import AlignSettings
from fusion_jax.data.batches import Data, buckets_of, collate
from fusion_jax.data.documents import chat_documents, text_documents
from fusion_jax.errors import InputError
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import load
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.teachers.documents import Reading, read_documents
from fusion_jax.teachers.live import live_data
from fusion_jax.teachers.opinions import own_opinions, source_opinions
from fusion_jax.teachers.rows import fusion_rows, packed
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.targets import fused_examples
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.optimise import optimise
from fusion_jax.train.scores import score
from fusion_jax.train.settings import TrainSettings, compute_of_teachers, compute_to_read
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from tests.train.test_opinions import CHATS, TEXTS, quiet

pytestmark = pytest.mark.usefixtures("quick_compiler")

K = 5
MANY = [*TEXTS, "a", "Sort: c a b\na b c", "Double 12\n24", "Name the second letter of k l a b c\nl", "Add 1 and 2\n3"]


@pytest.fixture(scope="module")
def models():
    return {name: load(model_path(f"zoo:{name}"), dtype="float32") for name in ("target", "gemma-source")}


def readings(folder, models, *, live, chats=False):
    """Of both models, the pivot first."""
    out = []
    for name, model in models.items():
        documents = chat_documents(CHATS, model.tokenizer, model.tokenizer) if chats else text_documents(MANY)
        out.append(read_documents(
            None if live else folder / name, name, model, documents, k=K, max_length=64, compute=Compute(),
            batch_size=4, progress=quiet,
        ))  # fmt: skip
    return out


def rows_of(folder, both, fusion, *, chats=False, block=0):
    source, reach = source_opinions(folder, *both, AlignSettings(), fusion, whole=not chats, progress=quiet)
    rows, dropped = fusion_rows(both[0].texts, [own_opinions(both[0], fusion), source])
    return (packed(rows, block, reset=True) if block else rows), dropped, reach


def same(one, other):
    """Examples are equal in tokens and masks, and in targets but for the last bits of a forward pass in float16."""
    assert one == other
    np.testing.assert_array_equal(one.groups, other.groups)
    assert one.targets.ids.shape == other.targets.ids.shape
    np.testing.assert_allclose(one.targets.share, other.targets.share, rtol=1e-5)
    size = 1 + max(int(t.targets.ids.max()) for t in (one, other))
    dense = np.zeros((2, len(one.targets.ids), size))
    for n, targets in enumerate((one.targets, other.targets)):
        np.add.at(dense[n], (np.arange(dense.shape[1])[:, None], targets.ids), targets.probs)
    np.testing.assert_allclose(*dense, atol=2e-3)


def test_rows_are_those_of_the_store(tmp_path, models):
    """Whatever is asked for together; a number may stand twice."""
    stored, live = (readings(tmp_path, models, live=live)[1] for live in (False, True))
    assert live.live and not stored.live and len(live.rows) == len(MANY) and live.rows.identity == stored.rows.identity
    for asked in ([3], [5, 0, 2, 5], range(len(MANY))):
        for theirs, ours in zip(stored.rows.some(asked), live.rows.some(asked), strict=True):
            for name in ("ids", "offsets", "topk_ids"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert ours.topk_logprobs.dtype == np.float16
            np.testing.assert_allclose(ours.topk_logprobs, theirs.topk_logprobs, rtol=2e-3, atol=1e-6)
            for name in ("logsumexp", "tail", "metric"):
                np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6)
    assert [len(row.ids) for row in live.rows] == [len(row.ids) for row in stored.rows]


@pytest.mark.parametrize("changes", [
    {}, {"function": "avgce"}, {"pivot": False, "tail": "bucket"}, {"schedule": "soft"}, {"choice": "token"},
], ids=str)  # fmt: skip
def test_examples_are_those_of_the_store(tmp_path, models, changes):
    """Texts in blocks, chats one by one; stand-ins have the sizes of what comes in their place."""
    fusion = FusionSettings(**changes)
    for chats, block in ((False, 24), (True, 0)):
        folder, mask = tmp_path / str(chats), "labels" if chats else "all"
        found = []
        for live in (False, True):
            both = readings(folder, models, live=live, chats=chats)
            found.append(rows_of(folder / f"aligned-{live}", both, fusion, chats=chats, block=block))
        (stored, dropped, reach), (live, dropped_too, reach_too) = found
        assert dropped == dropped_too and sum(dropped.values()) == 0
        assert reach_too.rules == reach.rules and reach_too.classes.keys() == reach.classes.keys()
        assert reach_too.mass == pytest.approx(reach.mass, abs=1e-4) and sum(reach.mass.values()) == pytest.approx(1)
        kept = fused_examples(folder / "examples", stored, fusion, mask=mask, reset=bool(block))
        data = live_data(live, fusion, k=K, mask=mask, reset=bool(block))
        assert len(data) == len(kept)
        np.testing.assert_array_equal(data.extents, Data(list(kept)).extents)
        order = [*range(len(kept)), 0]
        for ours, number in zip(data.some(order), order, strict=True):
            same(ours, kept[number])


def test_training_asks_for_a_batch_at_once_and_learns_the_same(tmp_path, models):
    """Two epochs in micro-batches; after a stop the rest of the steps, with the same bits."""
    fusion, (pivot, source) = FusionSettings(weight=0.5, kind="kl", tail="bucket"), readings(None, models, live=True)
    settings = TrainSettings(
        optimizer=OptimizerSettings(learning_rate=1e-3), epochs=2.0, batch_size=4, micro_batches=2, log_every=1,
        checkpoint_every=2, eval_every=2,
    )  # fmt: skip
    objective = objectives.fusion(fusion, token_classes(pivot.view))
    rows, *_ = rows_of(tmp_path / "live", (pivot, source), fusion)
    data = live_data(rows, fusion, k=K, mask="labels")
    stored, *_ = rows_of(tmp_path / "stored", readings(tmp_path, models, live=False), fusion)
    kept = Data(list(fused_examples(tmp_path / "examples", stored, fusion, mask="labels")))
    asked = []

    def told(wanted):
        asked.append(len(wanted))
        if len(asked) == 8:  # of the second run, whose state after two steps is saved
            raise KeyboardInterrupt
        return data.taught(wanted)

    def learnt(name, some):
        (tmp_path / name).mkdir(exist_ok=True)
        run = RunFolder(tmp_path / name, Console(quiet=True))
        return optimise(models["target"], some, objective, settings, run).params

    counting = dataclasses.replace(data, taught=told)
    found = {"live": learnt("whole", counting), "stored": learnt("kept", kept)}
    assert asked == [4] * 4
    with pytest.raises(KeyboardInterrupt):
        learnt("cut", counting)
    for one, other in zip(*map(jax.tree.leaves, (learnt("cut", counting), found["live"])), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 9 <= len(asked) <= 11  # not from the beginning
    for one, other in zip(*(jax.tree.leaves(found[name]) for name in ("live", "stored")), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_metrics_tell_the_kept_mass_by_class(tmp_path, models):
    """Against the targets of the scored tokens, summed by hand."""
    fusion = FusionSettings(tail="ignore", pivot=False)
    pivot, source = readings(None, models, live=True)
    rows, *_ = rows_of(tmp_path, (pivot, source), fusion)
    examples = live_data(rows, fusion, k=K, mask="labels").some(range(len(rows)))
    model, classes = models["target"], token_classes(pivot.view)
    scores = jax.jit(lambda p: score(p, model.config, collate(examples, buckets_of(examples)), Compute()))(model.params)
    _, metrics = objectives.fusion(fusion, classes).loss(scores, Progress(jax.numpy.asarray(0), 1))
    sums, counts = np.zeros((2, len(CLASSES)))
    for example in examples:
        for t, mass in enumerate(example.targets.probs.sum(-1)):
            if example.groups[t + 1]:
                kind = classes[example.rows[0][t + 1]]
                sums[kind], counts[kind] = sums[kind] + mass, counts[kind] + 1
    np.testing.assert_allclose(metrics["mass"].total, sums.sum(), rtol=1e-5)
    for c, name in enumerate(CLASSES):
        np.testing.assert_allclose(metrics[f"mass/{name}"], (sums[c], counts[c]), rtol=1e-5)


def test_what_live_teachers_cannot_do(tmp_path, models):
    pivot, source = readings(None, models, live=True)
    blended = AlignSettings(rules="chat_v1")
    with pytest.raises(InputError, match="field 'rules': blends rows"):
        source_opinions(tmp_path, pivot, source, blended, FusionSettings(), whole=True, progress=quiet)
    broken = jax.tree.map(lambda x: x * np.nan, models["target"].params)
    bad = dataclasses.replace(models["target"], params=broken)
    nan = readings(None, {"target": bad}, live=True)[0]
    with pytest.raises(
        InputError, match=r"record 3, field 'topk_logprobs': is not finite\. Check the teacher's weights"
    ):
        nan.rows.some([2])
    assert isinstance(nan, Reading)


def test_devices_of_their_own_need_more_than_one():
    with pytest.raises(InputError, match=r"field '--train.mesh-spare': 1 of 1 devices are left to others"):
        compute_to_read(TrainSettings(mesh_spare=1), jax.devices()[:1])
    assert compute_of_teachers(TrainSettings()).mesh is None
