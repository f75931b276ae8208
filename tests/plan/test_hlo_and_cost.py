"""The parser and the walk on small programs written by hand, with figures computed by hand."""

from __future__ import annotations

import itertools

import pytest

from fusion_jax.plan.cost import step_time
from fusion_jax.plan.hlo import parse, parse_shapes, replica_groups
from fusion_jax.plan.work import attention_flops, matmul_flops, traffic
from fusion_jax.slices import slice_of

SLICE = slice_of("v5e-4")
COORDS = list(itertools.product(range(2), range(2)))
PEAK, BANDWIDTH, LINK = 197e12 * 0.95, 819e9, 45e9
MATMUL = """
%matmul (p0: bf16[1024,2048], p1: bf16[2048,4096]) -> bf16[1024,4096] {
  %p0 = bf16[1024,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[2048,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[1024,4096]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}
"""
MATMUL_TIME = 2 * 1024 * 2048 * 4096 / PEAK
GATHER = "replica_groups=[1,4]<=[4], dimensions={0}"
GATHER_TIME = 8192 * 4096 * 2 * 3 / 4 / (2 * LINK)  # three quarters of the result come in over two links


def entry(*lines: str, before: str = MATMUL) -> str:
    inputs = (
        "  %a = bf16[1024,2048]{1,0:T(8,128)(2,1)} parameter(0)",
        "  %b = bf16[2048,4096]{1,0:T(8,128)(2,1)} parameter(1)",
        "  %w = bf16[2048,4096]{1,0:T(8,128)(2,1)} parameter(2)",
    )
    return f"HloModule m, is_scheduled=true\n{before}\nENTRY %main (a: bf16[1024,2048]) -> f32[] {{\n" + "\n".join([
        *inputs, *(f"  {line}" for line in lines), "}",
    ])  # fmt: skip


def times(text: str, kernel_share: float = 1.0):
    return step_time(parse(text), SLICE, COORDS, kernel_share)


def test_shapes_with_padding_of_tiles_and_memory_spaces():
    (one,) = parse_shapes("bf16[3,100]{1,0:T(8,128)(2,1)S(1)}")
    assert (one.dims, one.space, one.size) == ((3, 100), 1, 8 * 128 * 2)
    (transposed,) = parse_shapes("f32[130,2]{0,1:T(8,128)}")
    assert transposed.size == 8 * 256 * 4
    assert [s.dims for s in parse_shapes("(f32[2,3]{1,0}, s32[])")] == [(2, 3), ()]


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    ("channel_id=1", [[0, 1, 2, 3]]),
])  # fmt: skip
def test_replica_groups_in_every_form(text, groups):
    assert replica_groups(text, 4) == groups


def test_a_matmul_takes_its_flops_at_the_fitted_share_of_the_peak():
    t = times(entry("ROOT %f = bf16[1024,4096]{1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kOutput, calls=%matmul"))
    assert t.flops == 2 * 1024 * 2048 * 4096
    assert t.total == t.compute == pytest.approx(MATMUL_TIME)


def test_a_matmul_short_of_work_takes_the_time_of_its_bytes():
    t = times(entry(
        "%x = bf16[8,2048]{1,0} parameter(3)",
        "ROOT %d = bf16[8,4096]{1,0} dot(%x, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    ))  # fmt: skip
    moved = 2 * (8 * 2048 + 2048 * 4096 + 8 * 4096)
    assert t.flops == 2 * 8 * 2048 * 4096
    assert t.total == t.memory == pytest.approx(moved / BANDWIDTH)


def test_batched_matmuls_written_as_windows_count_only_places_inside_the_input():
    """Eight heads as a window of 8 over one row padded by 7 on each side."""
    module = parse(entry(
        "%x = bf16[2,2048,4096,1]{2,1,3,0} parameter(3)", "%y = bf16[8,128,4096,1]{2,1,0,3} parameter(4)",
        "ROOT %c = bf16[2,2048,8,128]{1,3,2,0} convolution(%x, %y), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
    ))  # fmt: skip
    main = module.computations["main"]
    assert matmul_flops(module, main.root, main) == 2 * (2 * 2048) * (8 * 128) * 4096


def test_a_loop_is_multiplied_by_the_constant_of_its_condition():
    loop = (
        MATMUL
        + """
%condition (p: (s32[], bf16[1024,2048])) -> pred[] {
  %n = s32[] constant(5)
  %p = (s32[], bf16[1024,2048]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], bf16[1024,2048], bf16[2048,4096])) -> (s32[], bf16[1024,2048], bf16[2048,4096]) {
  %p = (s32[], bf16[1024,2048]{1,0}, bf16[2048,4096]{1,0}) parameter(0)
  %x = bf16[1024,2048]{1,0} get-tuple-element(%p), index=1
  %y = bf16[2048,4096]{1,0} get-tuple-element(%p), index=2
  %f = bf16[1024,4096]{1,0} fusion(%x, %y), kind=kOutput, calls=%matmul
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], bf16[1024,2048]{1,0}, bf16[2048,4096]{1,0}) tuple(%i, %x, %y)
}
"""
    )
    line = "ROOT %l = (s32[], bf16[1024,2048]{1,0}, bf16[2048,4096]{1,0}) while(%t), condition=%condition, body=%body"
    five = times(entry(line, before=loop))
    assert (five.total, five.unknown) == (pytest.approx(5 * MATMUL_TIME), 0)
    known = line + ', backend_config={"known_trip_count":{"n":"7"}}'
    assert times(entry(known, before=loop)).total == pytest.approx(7 * MATMUL_TIME)
    unknown = loop.replace("%lt = pred[] compare(%i, %n), direction=LT", "%no = pred[] and(%i, %n)")
    one = times(entry(line, before=unknown))
    assert (one.total, one.unknown) == (pytest.approx(MATMUL_TIME), 1)


def test_elementwise_work_takes_its_bytes_and_of_slices_and_updates_only_what_is_touched():
    slices = """
%sliced (p0: bf16[32,256,4096], p1: s32[]) -> bf16[1,256,4096] {
  %p0 = bf16[32,256,4096]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %d = bf16[1,256,4096]{2,1,0} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,256,4096}
}

%updated (p0: bf16[32,256,4096], p1: bf16[1,256,4096], p2: s32[]) -> bf16[32,256,4096] {
  %p0 = bf16[32,256,4096]{2,1,0} parameter(0)
  %p1 = bf16[1,256,4096]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %u = bf16[32,256,4096]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}
"""
    text = entry(
        "%s = bf16[32,256,4096]{2,1,0} parameter(3)", "%i = s32[] parameter(4)",
        "%one = bf16[1,256,4096]{2,1,0} fusion(%s, %i), kind=kLoop, calls=%sliced",
        "ROOT %all = bf16[32,256,4096]{2,1,0} fusion(%s, %one, %i), kind=kLoop, calls=%updated", before=slices,
    )  # fmt: skip
    module, part = parse(text), 256 * 4096 * 2
    main = module.computations["main"]
    for name in ("one", "all"):
        assert traffic(module, main.by_name[name], main) == (2 * part + 4, 0, 0)
    assert times(text).memory == pytest.approx(2 * (2 * part + 4) / (0.4 * BANDWIDTH))


def test_a_slice_inside_a_nested_fusion_is_read_alone():
    nested = (
        MATMUL
        + """
%take (p0: bf16[32,2048,4096], p1: s32[]) -> bf16[2048,4096] {
  %p0 = bf16[32,2048,4096]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %d = bf16[1,2048,4096]{2,1,0} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,2048,4096}
  ROOT %b = bf16[2048,4096]{1,0} bitcast(%d)
}

%layer (p0: bf16[1024,2048], p1: bf16[32,2048,4096], p2: s32[]) -> bf16[1024,4096] {
  %p0 = bf16[1024,2048]{1,0} parameter(0)
  %p1 = bf16[32,2048,4096]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %one = bf16[2048,4096]{1,0} fusion(%p1, %p2), kind=kLoop, calls=%take
  ROOT %c = bf16[1024,4096]{1,0} convolution(%p0, %one), dim_labels=bf_io->bf
}
"""
    )
    text = entry(
        "%s = bf16[32,2048,4096]{2,1,0} parameter(3)", "%i = s32[] parameter(4)",
        "ROOT %f = bf16[1024,4096]{1,0} fusion(%a, %s, %i), kind=kOutput, calls=%layer", before=nested,
    )  # fmt: skip
    module = parse(text)
    main = module.computations["main"]
    assert traffic(module, main.root, main) == (2 * (1024 * 2048 + 2048 * 4096 + 1024 * 4096) + 4, 0, 0)
    assert matmul_flops(module, main.root, main) == 2 * 1024 * 2048 * 4096


def test_a_slice_of_what_a_nested_fusion_lays_out_otherwise_is_read_alone():
    """As the TPU compiler slices stacked kernels in int8."""
    nested = """
%turned (p0: s8[32,2048,4096]) -> s8[32,2048,4096] {
  %p0 = s8[32,2048,4096]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[32,2048,4096]{2,1,0:T(8,128)(4,1)} copy(%p0)
}

%take (p0: s8[32,2048,4096], p1: s32[]) -> s8[1,2048,4096] {
  %p0 = s8[32,2048,4096]{2,1,0:T(32,128)(4,1)} parameter(0)
  %view = s8[32,2048,4096]{2,1,0:T(8,128)(4,1)} fusion(%p0), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%turned
  %p1 = s32[] parameter(1)
  ROOT %d = s8[1,2048,4096]{2,1,0} dynamic-slice(%view, %p1, %p1, %p1), dynamic_slice_sizes={1,2048,4096}
}
"""
    text = entry(
        "%s = s8[32,2048,4096]{2,1,0:T(32,128)(4,1)} parameter(3)", "%i = s32[] parameter(4)",
        "ROOT %f = s8[1,2048,4096]{2,1,0} fusion(%s, %i), kind=kLoop, calls=%take", before=nested,
    )  # fmt: skip
    module = parse(text)
    main = module.computations["main"]
    assert traffic(module, main.root, main) == (2 * 2048 * 4096 + 4, 0, 0)


def test_a_weight_handed_on_by_a_nested_fusion_is_read_whole():
    """As the compiler wraps the weights of a decoded token: the nested fusion is a bitcast of its parameter alone."""
    nested = """
%handed_on (p0: bf16[1,2048,4096]) -> bf16[2048,4096] {
  %p0 = bf16[1,2048,4096]{2,1,0} parameter(0)
  ROOT %b = bf16[2048,4096]{1,0} bitcast(%p0)
}

%token (p0: bf16[8,2048], p1: bf16[1,2048,4096]) -> bf16[8,4096] {
  %p0 = bf16[8,2048]{1,0} parameter(0)
  %p1 = bf16[1,2048,4096]{2,1,0} parameter(1)
  %weight = bf16[2048,4096]{1,0} fusion(%p1), kind=kLoop, calls=%handed_on
  ROOT %c = bf16[8,4096]{1,0} convolution(%p0, %weight), dim_labels=bf_io->bf
}
"""
    text = entry(
        "%x = bf16[8,2048]{1,0} parameter(3)", "%s = bf16[1,2048,4096]{2,1,0} parameter(4)",
        "ROOT %f = bf16[8,4096]{1,0} fusion(%x, %s), kind=kOutput, calls=%token", before=nested,
    )  # fmt: skip
    module, moved = parse(text), 2 * (8 * 2048 + 2048 * 4096 + 8 * 4096)
    main = module.computations["main"]
    assert traffic(module, main.root, main) == (moved, 0, 0)
    assert times(text).total == times(text).memory == pytest.approx(moved / BANDWIDTH)


def test_a_collective_that_is_waited_for_is_exposed():
    t = times(entry(f"ROOT %g = bf16[8192,4096]{{1,0}} all-gather(%w), channel_id=1, {GATHER}"))
    assert (t.exposed, t.overlapped) == (pytest.approx(GATHER_TIME), 0.0)
    two = times(entry(f"ROOT %r = bf16[8192,4096]{{1,0}} all-reduce(%w), {GATHER}"))
    assert two.exposed == pytest.approx(2 * GATHER_TIME)
    scattered = times(entry("ROOT %r = bf16[2048,4096]{1,0} reduce-scatter(%w), replica_groups=[1,4]<=[4]"))
    assert scattered.exposed == pytest.approx(GATHER_TIME)
    one_dimension = times(entry("ROOT %g = bf16[4096,4096]{1,0} all-gather(%w), replica_groups=[2,2]<=[4]"))
    assert one_dimension.exposed == pytest.approx(4096 * 4096 * 2 / 2 / LINK)


def test_an_asynchronous_collective_hides_behind_the_work_between_its_ends():
    t = times(entry(
        f"%s = (bf16[2048,4096]{{1,0}}, bf16[8192,4096]{{1,0}}) all-gather-start(%w), {GATHER}",
        "%f = bf16[1024,4096]{1,0} fusion(%a, %b), kind=kOutput, calls=%matmul",
        "ROOT %g = bf16[8192,4096]{1,0} all-gather-done(%s)",
    ))  # fmt: skip
    assert GATHER_TIME > MATMUL_TIME
    assert t.overlapped == pytest.approx(MATMUL_TIME)
    assert t.exposed == pytest.approx(GATHER_TIME - MATMUL_TIME)
    assert t.total == pytest.approx(GATHER_TIME)


@pytest.mark.parametrize(("start", "seconds"), [
    ("%s = (bf16[2048,4096]{1,0}, bf16[2048,4096]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), "
     "source_target_pairs={{0,1},{1,0}}", 2048 * 4096 * 2 / LINK),
    (f"%s = (bf16[2048,4096]{{1,0}}, bf16[1024,2048]{{1,0}}) all-reduce-start(%w, %a), {GATHER}",
     2 * (2048 * 4096 + 1024 * 2048) * 2 * 3 / 4 / (2 * LINK)),
    (f"%s = ((bf16[2048,4096]{{1,0}}, bf16[1024,2048]{{1,0}}), (bf16[8192,4096]{{1,0}}, bf16[4096,2048]{{1,0}})) "
     f"all-gather-start(%w, %a), {GATHER}", (8192 * 4096 + 4096 * 2048) * 2 * 3 / 4 / (2 * LINK)),
])  # fmt: skip
def test_asynchronous_collectives_move_all_of_their_results(start, seconds):
    """Operands and contexts in the shapes of a start are not sent; of several arrays every one is."""
    opcode = start.split("-start(")[0].split()[-1]
    t = times(entry(start, f"ROOT %g = bf16[2048,4096]{{1,0}} {opcode}-done(%s)"))
    assert t.total == t.exposed == pytest.approx(seconds)


HELD = "bf16[32,2048,4096]{2,1,0:T(8,128)(2,1)S(5)}"
PART = "bf16[1,2048,4096]{2,1,0:T(8,128)(2,1)}"
OFFLOADED = f"""
%keep (p0: {HELD}, p1: {PART}, p2: s32[]) -> {HELD} {{
  %p0 = {HELD} parameter(0)
  %p1 = {PART} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %u = {HELD} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}}

%fetch (p0: {HELD}, p1: s32[]) -> {PART} {{
  %p0 = {HELD} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %d = {PART} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={{1,2048,4096}}
}}
"""


def test_what_is_kept_on_the_host_moves_over_the_link_to_the_host():
    """An update and a slice of a buffer there, one after the other behind one matmul, and a copy that is waited for."""
    part = 2048 * 4096 * 2 / SLICE.chip.host_link
    inputs = (f"%h = {HELD} parameter(3)", f"%x = {PART} parameter(4)", "%i = s32[] parameter(5)")
    keep = f"%k = (({HELD}, {PART}, s32[]), {HELD}, u32[]{{:S(2)}}) async-start(%h, %x, %i), calls=%keep"
    fetch = f"%g = (({HELD}, s32[]), {PART}, u32[]{{:S(2)}}) async-start(%h, %i), calls=%fetch"
    busy = "%f = bf16[1024,4096]{1,0} fusion(%a, %b), kind=kOutput, calls=%matmul"
    done = f"%kd = {HELD} async-done(%k)", f"ROOT %gd = {PART} async-done(%g)"
    t = times(entry(*inputs, keep, fetch, busy, *done, before=MATMUL + OFFLOADED))
    assert t.total == pytest.approx(2 * part)
    assert t.host == pytest.approx(2 * part - MATMUL_TIME)
    copy = f"ROOT %c = {PART.replace(')}', ')S(5)}')} copy(%x)"
    waited = times(entry(*inputs, copy))
    assert waited.host == pytest.approx(part) and waited.total < 1.1 * part
    started = f"%s = ({PART.replace(')}', ')S(5)}')}, {PART}, u32[]{{:S(2)}}) copy-start(%x)"
    ended = f"ROOT %c = {PART.replace(')}', ')S(5)}')} copy-done(%s)"
    assert times(entry(*inputs, started, ended)).host == pytest.approx(part)


def test_a_copy_hides_behind_arithmetic_but_not_behind_other_traffic():
    start = "%s = (bf16[2048,4096]{1,0:S(1)}, bf16[2048,4096]{1,0}, u32[]{:S(2)}) copy-start(%w)"
    done = "ROOT %c = bf16[2048,4096]{1,0:S(1)} copy-done(%s)"
    busy = "%f = bf16[1024,4096]{1,0} fusion(%a, %b), kind=kOutput, calls=%matmul"
    assert times(entry(start, busy, done)).total == pytest.approx(MATMUL_TIME)
    reading = "%d = bf16[8,4096]{1,0} dot(%x, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    moved = 2 * (8 * 2048 + 2 * 2048 * 4096 + 8 * 4096)
    t = times(entry("%x = bf16[8,2048]{1,0} parameter(3)", start, reading, done))
    assert t.total == t.memory == pytest.approx(moved / BANDWIDTH)


def test_a_collective_carried_through_fusions_counts_once():
    """As the compiler writes asynchronous collective fusion: each fusion repeats the collective it carries along."""
    gather = f"%g = bf16[8192,4096]{{1,0}} all-gather(%p0), {GATHER}"
    carried = (
        MATMUL
        + f"""
%start_it (p0: bf16[2048,4096]) -> (bf16[2048,4096], bf16[8192,4096]) {{
  %p0 = bf16[2048,4096]{{1,0}} parameter(0)
  {gather}
  ROOT %c = (bf16[2048,4096]{{1,0}}, bf16[8192,4096]{{1,0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (p0: bf16[2048,4096], p1: bf16[1024,2048], p2: bf16[2048,4096]) -> (bf16[1024,4096], bf16[8192,4096]) {{
  %p0 = bf16[2048,4096]{{1,0}} parameter(0)
  %p1 = bf16[1024,2048]{{1,0}} parameter(1)
  %p2 = bf16[2048,4096]{{1,0}} parameter(2)
  %convolution.2 = bf16[1024,4096]{{1,0}} convolution(%p1, %p2), dim_labels=bf_io->bf
  {gather}
  ROOT %t = (bf16[1024,4096]{{1,0}}, bf16[8192,4096]{{1,0}}) tuple(%convolution.2, %g)
}}

%end_it (p0: bf16[2048,4096]) -> bf16[8192,4096] {{
  %p0 = bf16[2048,4096]{{1,0}} parameter(0)
  {gather}
  ROOT %c = bf16[8192,4096]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}
"""
    )
    text = entry(
        "%async-collective-start.1 = (bf16[2048,4096]{1,0}, bf16[8192,4096]{1,0}) fusion(%w), kind=kCustom, calls=%start_it",
        "%kept = bf16[2048,4096]{1,0} get-tuple-element(%async-collective-start.1), index=0",
        "%fusion.1 = (bf16[1024,4096]{1,0}, bf16[8192,4096]{1,0}) fusion(%kept, %a, %b), kind=kOutput, calls=%async_collective_fusion.1",
        "%again = bf16[2048,4096]{1,0} get-tuple-element(%fusion.1), index=1",
        "ROOT %async-collective-done.1 = bf16[8192,4096]{1,0} fusion(%again), kind=kCustom, calls=%end_it", before=carried,
    )  # fmt: skip
    module, t = parse(text), times(text)
    main = module.computations["main"]
    assert traffic(module, main.by_name["fusion.1"], main).hbm == 2 * (1024 * 2048 + 2048 * 4096 + 1024 * 4096)
    assert t.exposed + t.overlapped == pytest.approx(GATHER_TIME)
    assert t.compute + t.memory == pytest.approx(t.overlapped)
    assert t.flops == 2 * 1024 * 2048 * 4096


def test_a_conditional_takes_its_longest_branch_and_cycles_of_the_compiler_go_first():
    line = 'ROOT %f = bf16[1024,4096]{1,0} fusion(%a, %b), calls=%matmul, backend_config={"estimated_cycles":"3000"}'
    assert times(entry(line)).total == pytest.approx(3000 / 1.5e9)
    branches = (
        MATMUL
        + """
%yes (p: (bf16[1024,2048], bf16[2048,4096])) -> bf16[1024,4096] {
  %p = (bf16[1024,2048]{1,0}, bf16[2048,4096]{1,0}) parameter(0)
  %x = bf16[1024,2048]{1,0} get-tuple-element(%p), index=0
  %y = bf16[2048,4096]{1,0} get-tuple-element(%p), index=1
  ROOT %f = bf16[1024,4096]{1,0} fusion(%x, %y), kind=kOutput, calls=%matmul
}

%no (p: bf16[1024,4096]) -> bf16[1024,4096] {
  ROOT %p = bf16[1024,4096]{1,0} parameter(0)
}
"""
    )
    line = "ROOT %c = bf16[1024,4096]{1,0} conditional(%i, %t, %a), branch_computations={%yes, %no}"
    assert times(entry(line, before=branches)).total == pytest.approx(MATMUL_TIME)


def test_a_kernel_by_its_own_estimate_or_by_its_shapes():
    """As splash attention is called: tables of blocks first, then q, k, v of grouped heads."""
    q, k = "bf16[2,32,2048,128]{3,2,1,0}", "bf16[2,8,2048,128]{3,2,1,0}"
    inputs = (
        "%m = s8[1,4,4]{2,1,0} parameter(3)", f"%q = {q} parameter(4)", f"%k = {k} parameter(5)", f"%v = {k} parameter(6)",
    )  # fmt: skip
    call = 'custom_call_target="tpu_custom_call"'
    text = entry(*inputs, f"ROOT %s = ({q}, f32[2,32,2048,128]{{3,2,1,0}}) custom-call(%m, %q, %k, %v), {call}")
    causal = 4 * 2 * 32 * 2048 * 2048 * 128 / 2
    main = parse(text).computations["main"]
    assert attention_flops(main.root, main) == causal
    assert times(text).compute == pytest.approx(causal / (0.5 * 197e12))
    backward = parse(entry(
        *inputs, "%l = f32[2,32,8,2048]{3,2,1,0} parameter(7)",
        f"ROOT %s = (f32[2,512,128]{{2,1,0}}, {q}, {k}, {k}) custom-call(%m, %q, %k, %v, %l, %q, %l), {call}",
    )).computations["main"]  # fmt: skip
    assert attention_flops(backward.root, backward) == 2.5 * causal
    costly = ', backend_config={"cost_estimate":{"flops":"12000000000000","bytes_accessed":"8190000000"}}'
    stated = times(
        text.replace(call, call + costly), kernel_share=0.5
    )  # which is of attention kernels, that state none
    assert stated.flops == 12e12 and stated.compute == pytest.approx(12e12 / (0.5 * 197e12))
    moving = times(text.replace(call, call + costly.replace("12000000000000", "12")))
    assert moving.memory == pytest.approx(8.19e9 / 819e9)
