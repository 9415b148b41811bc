"""The schedules: order of work by enumeration, any block sizes and any lag."""

import functools
import itertools
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cbam_triton.kernels.launch import grid
from cbam_triton.kernels.launch.problem import Problem
from cbam_triton.kernels.launch.tile_sizes import Config

pytest.importorskip("triton")

import triton
import triton.language as tl

from cbam_triton.kernels.launch import forward as launch
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.tensors import plan_of
from cbam_triton.kernels.schedules import work_items
from cbam_triton.kernels.schedules.work_items import work_item
from cbam_triton.kernels.stages.channel_pool import pool_grid

from ...cases import FORMATS, SCHEDULES, assert_refined, changed, eager_gates, integers, layer, normal
from ...errors import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


def enumerated(N, lags, tiles):
    """(stage, n) of every ticket: step by step, the oldest sample first; without a lag stage by stage."""
    if lags[-1] == 0:
        return [(stage, n) for stage in range(4) for n in range(N) for _ in range(tiles[stage])]
    order = []
    for step in range(N + lags[-1]):
        items = [(stage, step - lags[stage]) for stage in range(4) for _ in range(tiles[stage])]
        order += [(stage, n) for stage, n in items[::-1] if 0 <= n < N]
    return order


def in_python(function, *arguments):
    """A device function's own text, run on Python's integers."""
    language = types.SimpleNamespace(
        minimum=min, maximum=max, cdiv=lambda a, b: -(-a // b), where=lambda condition, a, b: a if condition else b,
        constexpr=int,
    )  # fmt: skip
    names = {"tl": language, "_item_in_step": functools.partial(in_python, work_items._item_in_step)}
    return types.FunctionType(function.fn.__code__, names)(*arguments)


def check_order(items, N, lags, tiles):
    assert len(set(items)) == len(items) == N * sum(tiles)
    assert {tile for stage, _, tile in items if stage == 0} == set(range(tiles[0]))
    assert [(stage, n) for stage, n, _ in items] == enumerated(N, lags, tiles)


def check_inputs_come_first(items):
    """All tiles of a sample in a stage have smaller tickets than any of its tiles in a later stage."""
    tickets = {}
    for ticket, (stage, n, _) in enumerate(items):
        tickets.setdefault((n, stage), []).append(ticket)
    for (n, stage), mine in tickets.items():
        assert all(max(tickets.get((n, earlier), [-1])) < min(mine) for earlier in range(stage))


def _lags(N, B, C):
    """Lags of all stages: equal steps, or none for a stage without tiles."""
    waits = 1 + (B > 0) + (C > 0)
    for lag in range(N // waits + 1):
        lag_b = lag if B else 0
        lag_c = lag_b + lag if C else lag_b
        yield 0, lag_b, lag_c, lag_c + lag


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 9])
def test_every_ticket_is_another_tile_and_its_inputs_have_smaller_tickets(N):
    for tiles in itertools.product((1, 2, 7), (0, 1, 3), (0, 1, 2), (1, 5)):
        for lags in _lags(N, *tiles[1:3]):
            items = [in_python(work_item, ticket, N, *lags[1:], *tiles) for ticket in range(N * sum(tiles))]
            check_order(items, N, lags, tiles)
            check_inputs_come_first(items)


@triton.jit
def _work_items(items_ptr, N, LAG_B, LAG_C, LAG_D, TILES_A, TILES_B, TILES_C, TILES_D):
    for ticket in range(N * (TILES_A + TILES_B + TILES_C + TILES_D)):
        stage, n, tile = work_item(ticket, N, LAG_B, LAG_C, LAG_D, TILES_A, TILES_B, TILES_C, TILES_D)
        tl.store(items_ptr + 3 * ticket, stage)
        tl.store(items_ptr + 3 * ticket + 1, n)
        tl.store(items_ptr + 3 * ticket + 2, tile)


@pytest.mark.parametrize("N, lags, tiles", [
    (1, (0, 0, 0), (3, 2, 1, 4)), (2, (0, 0, 0), (3, 2, 1, 4)), (5, (1, 1, 2), (2, 3, 0, 1)),
    (7, (2, 4, 6), (1, 1, 2, 3)),
    (4, (0, 0, 2), (3, 0, 0, 2)), (3, (1, 2, 3), (1, 2, 2, 1)),
])  # fmt: skip
def test_the_device_counts_tickets_as_the_enumeration_does(N, lags, tiles, device):
    found = torch.full((N * sum(tiles), 3), -1, dtype=torch.int32, device=device)
    _work_items[(1,)](found, N, *lags, *tiles)
    items = [tuple(row) for row in found.tolist()]
    check_order(items, N, (0, *lags), tiles)
    check_inputs_come_first(items)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("R, K", [(4, 3), (4, 0), (0, 3)])
def test_the_wavefront_has_done_what_the_lag_says_when_it_is_stopped(R, K, lag, device, monkeypatch):
    N = 5
    x, weights = normal((N, 8, 4, 4), device=device), layer(8, R, K, device=device)
    candidate = plan_of(x, weights, "wavefront").candidate._replace(lag=lag)
    problem, sizes = plan_of(x, weights, str(candidate)).problem, candidate.tiles._asdict()
    counts = (grid.pool_tiles(problem, sizes) if R else 0, grid.spatial_tiles(problem, sizes) if K else 0)
    last = grid.apply_tiles(problem, sizes)
    lags = (0, lag, lag, 2 * lag) if R and K else (0, 0, 0, lag)
    tiles = (*counts, 0, last) if R and K else (sum(counts), 0, 0, last)
    order = enumerated(N, lags, tiles)
    # Programs a sample: as few as finish the first one.
    each = (len(order) - order[::-1].index((3, 0)) + N - 1) // N
    monkeypatch.setattr(grid, "wavefront_tiles", lambda *_: each)
    begun = order[: N * each]
    assert len(begun) < len(order)
    y = launch.forward(x, weights, str(candidate))
    for n in range(N):
        if begun.count((3, n)) in (0, last):
            assert y[n].isnan().any().item() == y[n].isnan().all().item() == (begun.count((3, n)) == 0)


@triton.jit
def _pool_grid(grid_ptr, C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SPLIT_P: tl.constexpr):
    blocks, chunks, chunk = pool_grid(C, P, BLOCK_C, BLOCK_P, SPLIT_P)
    tl.store(grid_ptr, blocks)
    tl.store(grid_ptr + 1, chunks)
    tl.store(grid_ptr + 2, chunk)


GRIDS = list(itertools.product((1, 31, 64), (1, 49, 100, 784), (1, 32), (1, 16, 64), (1, 64, 100, 1024)))


def on_host(C, P, BLOCK_C, BLOCK_P, SPLIT):
    row = Config(*(1 for _ in Config._fields))._replace(POOL_C=BLOCK_C, POOL_P=BLOCK_P, POOL_SPLIT=SPLIT)
    return grid.pool_blocks(Problem(1, C, P, 1, 0, 4, 1, True), row)


def test_host_and_device_cut_the_channel_pool_alike_and_miss_no_pixel(device):
    for case in GRIDS:
        blocks, chunks, chunk = in_python(pool_grid, *case)
        assert (blocks, chunks) == on_host(*case)
        assert (chunks - 1) * chunk < case[1] <= chunks * chunk
        assert chunk % case[3] == 0
    for case in GRIDS[7::60]:
        found = torch.zeros(3, dtype=torch.int32, device=device)
        _pool_grid[(1,)](found, *case)
        assert tuple(found.tolist()) == in_python(pool_grid, *case)


def powers(low, high):
    return st.integers(low, high).map(lambda exponent: 1 << exponent)


@st.composite
def rows(draw):
    """Any block sizes that the kernels can take."""
    pool_p, spatial_c, apply_c = draw(powers(2, 6)), draw(powers(1, 5)), draw(powers(1, 5))
    mlp_c = draw(powers(1, 5))
    return Config(
        POOL_C=draw(powers(2, 5)),
        POOL_P=pool_p,
        POOL_SPLIT=draw(st.integers(8, 80)),
        POOL_KEEP=draw(st.sampled_from([1 << i for i in range(7) if 1 << i <= pool_p])),
        POOL_R=draw(powers(0, 4)),
        POOL_DEPTH=draw(st.integers(1, 3)),
        MLP_T=draw(powers(0, 3)),
        MLP_C=mlp_c,
        MLP_SPLIT=mlp_c * draw(st.integers(1, 3)),
        SPATIAL_C=spatial_c,
        SPATIAL_P=draw(powers(3, 6)),
        SPATIAL_KEEP=draw(st.sampled_from([1 << i for i in range(6) if 1 << i <= spatial_c])),
        APPLY_C=apply_c,
        APPLY_P=draw(powers(3, 6)),
        APPLY_SPLIT=apply_c * draw(st.integers(1, 4)),
        MAP_P=draw(powers(3, 6)),
        num_warps=draw(powers(0, 2)),
        programs_per_sm=1,
    )


channels, widths = st.sampled_from([1, 8, 12, 16, 21]), st.sampled_from([1, 4, 8, 9])
shapes = st.tuples(st.integers(1, 3), channels, st.integers(1, 5), widths)


def fitting(row, problem):
    """`row` with tiles of whole accesses along the unit stride."""
    along = "C" if problem.channels_last else "P"
    names = [f"{stage}_{along}" for stage in ("POOL", "SPATIAL", "APPLY")]
    row = row._replace(**{name: max(getattr(row, name), problem.vec) for name in names})
    return row._replace(APPLY_SPLIT=row.APPLY_C * max(1, row.APPLY_SPLIT // row.APPLY_C))


def check_row(row, lag, shape, R, K, memory_format, schedule, device):
    x = integers(shape, dtype=torch.float16, memory_format=memory_format, device=device)
    weights = layer(shape[1], R, K, device=device)
    row = fitting(row, plan_of(x, weights, schedule).problem)
    candidate = str(Candidate(schedule, row, lag if schedule == "wavefront" else None))
    assert_refined(launch.forward(x, weights, candidate), x, weights)
    if shape[1] in (1, 8, 16):  # means of so many integers are exact
        still = weights._replace(
            fc2_weight=torch.zeros_like(weights.fc2_weight), fc2_bias=None,
            conv_weight=integers((1, 2, K, K), device=device, seed=2), conv_bias=None,
        )  # fmt: skip
        z = launch.gates(x, still, candidate)[1]
        assert_same(z.double(), eager_gates(x.double(), changed(still, Tensor.double))[1])


any_case = given(
    row=rows(),
    lag=st.integers(1, 4),
    shape=shapes,
    R=st.sampled_from([1, 3, 20]),
    K=st.sampled_from([1, 3, 5]),
    memory_format=st.sampled_from(FORMATS),
    schedule=st.sampled_from(SCHEDULES),
)
few, many = (
    settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture]) for count in (14, 200)
)


@pytest.mark.usefixtures("nan_memory")
@few
@any_case
def test_any_block_sizes_and_any_lag_give_the_right_result(row, lag, shape, R, K, memory_format, schedule, device):
    check_row(row, lag, shape, R, K, memory_format, schedule, device)


@pytest.mark.slow
@pytest.mark.usefixtures("nan_memory")
@many
@any_case
def test_many_block_sizes_and_lags_give_the_right_result(row, lag, shape, R, K, memory_format, schedule, device):
    check_row(row, lag, shape, R, K, memory_format, schedule, device)
