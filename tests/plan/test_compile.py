"""The real TPU compiler on small models: what fits, where memory goes, what the programs never hold or gather."""

from __future__ import annotations

import importlib.util

import pytest

from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.plan import compile as planning
from fusion_jax.plan.flops import body_parameters, head_parameters, parameter_count
from fusion_jax.plan.hlo import parse
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.programs import (
    BeamDecode,
    Decode,
    MergeTensor,
    Prefill,
    SearchLayer,
    SearchLoss,
    TeacherStep,
    TrainStep,
)
from fusion_jax.plan.report import line, page, plan
from fusion_jax.plan.requests import Request, useful_flops
from fusion_jax.plan.runs import Planned
from fusion_jax.slices import slice_of

needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
SMALL = PUBLIC["llama3-8b"] | {
    "vocab_size": 131072, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
ROWS, TOKENS = 3, 512

USAGE = """\
Memory Space: default (color=0)
Total bytes: 3221225472 (3.00GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
    2.00GiB( 66%);    2.00GiB;            0;                1; f32[512,1048576]
    3.00GiB(100%);  512.00MiB;         1024;                2; 2×bf16[512,524288]

Memory Space: vmem (color=1)
Total bytes: 50331648 (48.00MiB)
"""
BUFFERS = """\
BufferAssignment:
allocation 0: size 1073741824, parameter 7, shape |f32[512,524288]| at ShapeIndex {}, maybe-live-out:
 value: <5655 param.21 @0> (size=1073741824,offset=0): f32[512,524288]{1,0:T(8,128)}
allocation 1: size 512, color 6, parameter 8, shape |s32[]| at ShapeIndex {}:
allocation 2: size 2147483648, preallocated-temp:
"""


def test_memory_is_read_from_the_compilers_reports():
    memory = planning.memory_of(USAGE, BUFFERS, available=2 * 2**30)
    assert (memory.arguments, memory.temporaries, memory.peak) == (2**30, 2 * 2**30, 3 * 2**30)
    assert memory.largest == ((2 * 2**30, "f32[512,1048576]"), (2**29, "2×bf16[512,524288]"))
    assert not memory.fits


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "jax\[tpu\]==0.10.2"'):
        planning.compile_for(Request("v5e-8", SMALL, TeacherStep(8, TOKENS)))


@pytest.fixture(scope="module")
def wrpo():
    step = TrainStep("wrpo", examples=4, tokens=TOKENS, prompt=0, micro_batches=2, reference="stored")
    return plan(Planned("wrpo", Request("v5e-8", SMALL, step, (1, 4, 2)), times=10))


@needs_compiler
def test_the_state_lies_in_equal_parts_on_all_chips(wrpo):
    state = 3 * 4 * parameter_count(config_from_hf(SMALL)) / 8
    assert wrpo.fits
    assert state <= wrpo.compiled.memory.arguments <= 1.03 * state


@needs_compiler
def test_a_step_never_holds_or_gathers_the_vocabulary(wrpo):
    """No array is as large as a chip's share of the logits, no collective as large as the head."""
    logits, head = ROWS * TOKENS * 131072 // 2, 131072 * 1024
    module = parse(wrpo.compiled.text)
    instructions = [i for c in module.computations.values() for i in c.instructions]
    assert max(s.elements for i in instructions for s in i.shapes) < min(logits, head)
    joined = [i for i in instructions if i.opcode in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")]
    assert joined
    assert max(s.elements for i in joined for s in i.shapes) < head / 4


@needs_compiler
def test_times_follow_from_the_flops_of_the_program(wrpo):
    """A WRPO step with everything recomputed: matmuls take a third more than useful, scores of attention twice."""
    useful = useful_flops(wrpo.planned.request) / 8
    assert 1.1 * useful < wrpo.times.flops < 1.7 * useful
    chip = slice_of("v5e-8").chip
    assert wrpo.times.total > wrpo.times.flops / chip.flops
    assert wrpo.times.exposed + wrpo.times.overlapped > 0
    assert 0.01 < wrpo.mfu < chip.efficiency


@needs_compiler
def test_the_page_says_what_fits_whose_figures_and_how_long_a_run_takes(wrpo):
    text = page(wrpo)
    assert "| fits | yes | compiler |" in text
    assert "10 times: " in text and "chip-h" in text
    assert f"{wrpo.compiled.memory.peak / 2**30:.2f} GiB" in text
    assert line(wrpo)["slice"] == "v5e-8 (8)"


@needs_compiler
@pytest.mark.parametrize("program, place, mesh", [
    (TeacherStep(8, TOKENS), "v5e-8", (1, -1, 1)), (Decode(8, 256, 128), "v5e-4", (1, 1, -1)),
    (BeamDecode(2, 256, 128, 4), "v5e-4", (1, 1, -1)),
    (MergeTensor("ties", 3, (131072, 1024)), "v5e-8", (1, -1, 1)),
    (SearchLayer(8, TOKENS, 4), "v5e-8", (1, -1, 1)), (SearchLoss(8, TOKENS, 4), "v5e-8", (1, 4, 2)),
    (Prefill(8, 256), "v6e-16", (-1, 1, 8)),  # 8 of a slice of 4 x 4, and more shards than key-value heads
])  # fmt: skip
def test_other_programs_are_planned(program, place, mesh):
    found = plan(Planned("one", Request(place, SMALL, program, mesh)))
    assert found.fits and found.times.total > 0
    if isinstance(program, Decode | BeamDecode):
        assert found.beside == 2 * parameter_count(config_from_hf(SMALL)) // 4
        useful = useful_flops(found.planned.request) / 4
        assert useful <= found.times.flops < 1.3 * useful  # every round of the loop, over the whole of the caches


@needs_compiler
@pytest.mark.parametrize(("weights", "size"), [("stored", 2), pytest.param("int8", 1, marks=pytest.mark.slow)])
def test_a_token_takes_no_less_than_reading_weights_and_cache_once(weights, size):
    """Four layers of Llama-3-8B by heads over four chips, which HBM bounds: at every token all weights of the layers
    and the head, and the whole caches; of layers in int8 a byte a number, for nothing holds them cast."""
    program, model = Decode(32, 1024, 512, weights=weights), PUBLIC["llama3-8b"] | {"num_hidden_layers": 4}
    found = plan(Planned("decode", Request("v5e-4", model, program, (1, 1, 4))))
    config = config_from_hf(model)
    weights = size * body_parameters(config) + 2 * head_parameters(config)
    attention = config.decoder[0].attention
    cache = 2 * 2 * 4 * attention.kv_heads * attention.head_dim * 32 * (1024 + 512)
    floor = 512 * (weights + cache) / 4 / slice_of("v5e-4").chip.bandwidth
    assert floor <= found.times.total < 1.2 * floor
    assert found.times.memory > 0.9 * floor
    assert found.doubts == ()


@needs_compiler
def test_a_program_that_does_not_fit_is_told_with_what_overflows():
    found = plan(Planned("sft", Request("v5e-4", PUBLIC["llama3-8b"], TrainStep("sft", 4, 1024))))
    assert not found.fits
    state = 3 * 4 * parameter_count(config_from_hf(PUBLIC["llama3-8b"])) / 4
    assert found.compiled.memory.arguments == pytest.approx(state, rel=0.01)
    assert "| fits | NO, " in page(found)
    assert "Greatest buffers: " in page(found) and "The state alone is too large" in page(found)


@needs_compiler
def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="do not divide over 4 chips"):
        plan(Planned("sft", Request("v5e-4", SMALL, TrainStep("sft", 6, TOKENS))))
