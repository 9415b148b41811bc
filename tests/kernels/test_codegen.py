"""What the compiler makes of the default kernels: registers, spills, access widths, on architectures that are not here.

The compiler runs in a process of its own, since this one may have Triton's interpreter on.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ptx import Access, accesses, exchanged_products

from .. import release

pytest.importorskip("triton")

NVIDIA = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
OTHERS = ("sm_75", "gfx942", "gfx1100")
RESNET50 = ("32x256x56x56", "32x512x28x28", "32x1024x14x14", "32x2048x7x7")
REGISTERS = 128


@functools.cache
def compiled(architectures, shapes, dtypes=("float16",), schedules=("staged", "wavefront"), modes=("inference",)):
    """Rows of `python -m bench codegen --json`."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--architecture", *architectures, "--shapes", *shapes, "--dtype", *dtypes]
    options += ["--schedule", *schedules, "--mode", *modes]
    found = subprocess.run(
        [sys.executable, "-m", "bench", "codegen", "--json", *options],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert rows, found.stderr
    return rows


def name_of(row):
    return " ".join(row[key] for key in ("architecture", "shape", "dtype", "layout", "schedule", "mode", "kernel"))


def check_spills(rows):
    spills = [f"{name_of(row)}: {row['spills']}" for row in rows if row["spills"] > 0]
    assert not spills


def check_registers(rows):
    check_spills(rows)
    crowded = [f"{name_of(row)}: {row['registers']}" for row in rows if row["registers"] > REGISTERS]
    assert not crowded


def widths_in_loops(rows, kind, layout):
    """Bytes of the accesses to 16-bit elements in the loops of all kernels of a layout."""
    found = [Access(**access) for row in rows if row["layout"] == layout for access in row["accesses"]]
    return {access.width for access in found if access.kind == kind and access.half and access.in_loop}


def check_code(rows):
    """No kernel loads past the cache that all threads see, and none jumps by a table."""
    assert all(row["non_coherent_loads"] == 0 for row in rows)
    assert all(row["jump_tables"] == 0 for row in rows)


def test_default_kernels_do_not_spill_and_move_x_by_16_bytes_an_access():
    rows = compiled(("sm_80",), ("32x256x28x28",))
    assert {row["kernel"] for row in rows} >= {"cbam_wavefront", "apply_gates_kernel"}
    check_registers(rows)
    check_code(rows)
    assert all(row["programs_per_sm"] >= 3 and row["waves"] > 0 and row["loop"]["loads"] > 0 for row in rows)
    for layout in ("nchw", "channels_last"):
        assert widths_in_loops(rows, "ld", layout) == widths_in_loops(rows, "st", layout) == {16}


def test_x_moves_8_bytes_an_access_for_196_pixels_in_nchw():
    rows = compiled(("sm_90",), ("32x1024x14x14",), schedules=("wavefront",))
    check_code(rows)
    for kind in ("ld", "st"):
        assert widths_in_loops(rows, kind, "nchw") == {8}
        assert widths_in_loops(rows, kind, "channels_last") == {16}


def test_kernels_of_training_do_not_spill():
    rows = compiled(("sm_80",), ("32x256x28x28",), schedules=("wavefront",), modes=("residual",))
    ours = {"cbam_wavefront", "backward_wavefront", "weight_gradients_kernel"}
    assert {row["kernel"] for row in rows} == ours | {"norm_sums_kernel", "norm_gradient_kernel"}
    check_spills(rows)
    check_code(rows)


def test_no_product_goes_to_another_thread_unrounded():
    rows = compiled(("sm_80",), ("2x16x2x1",), dtypes=("float32",), modes=("residual",))
    assert {"channel_gradient_kernel", "logit_gradient_kernel", "backward_wavefront"} <= {row["kernel"] for row in rows}
    assert all(row["exchanged_products"] == 0 for row in rows)


def test_the_wavefront_compiles_for_amd():
    if release("triton") < "3.5":
        pytest.skip("earlier releases of Triton compile for AMD with an installed ROCm")
    rows = compiled(("gfx942",), ("32x256x28x28",), schedules=("wavefront",))
    assert {row["layout"] for row in rows} == {"nchw", "channels_last"}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NVIDIA)
def test_stages_are_branched_to_without_a_jump_table(architecture):
    modes = ("inference", "training", "residual", "batch_norm")
    check_code(compiled((architecture,), ("32x256x28x28",), schedules=("wavefront",), modes=modes))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NVIDIA)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_default_kernels_do_not_spill_anywhere(architecture, dtype):
    rows = compiled((architecture,), RESNET50, (dtype,))
    check_registers(rows)
    assert all(row["non_coherent_loads"] == 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NVIDIA)
@pytest.mark.parametrize("mode", ["training", "residual", "batch_norm"])
def test_kernels_of_training_do_not_spill_anywhere(architecture, mode):
    rows = compiled((architecture,), RESNET50, ("float16", "float32"), modes=(mode,))
    check_spills(rows)
    assert all(row["non_coherent_loads"] == 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
def test_default_kernels_compile_for_older_and_other_gpus(architecture):
    assert len(compiled((architecture,), RESNET50)) == 5 * 2 * len(RESNET50)


def test_products_on_their_way_to_another_thread_are_found_in_ptx():
    ptx = """
    mul.f32 %r1, %r2, %r3;
    mov.b32 %r4, %r1;
    shfl.sync.bfly.b32 %r5, %r4, 16, 31, -1;
    fma.rn.f32 %r6, %r2, %r3, 0f00000000;
    shfl.sync.bfly.b32 %r7, %r6, 16, 31, -1;
    mul.rn.f64 %rd1, %rd2, %rd3;
    mov.b64 {%r8, %r9}, %rd1;
    shfl.sync.bfly.b32 %r10|%p1, %r8, 16, 31, -1;
"""
    assert exchanged_products(ptx) == 2


def test_accesses_are_read_from_ptx():
    ptx = """
$L__BB0_1:
    ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    mov.b32 {%rs1, %rs2}, %r1;
    ld.global.v2.b32 { %r7, %r8 }, [ %rd9 + 0 ];
    @%p1 bra $L__BB0_1;
    ld.global.nc.b16 { %rs7 }, [ %rd2 + 0 ];
    mov.b32 %r5, {%rs3, %rs4};
    @%p2 st.global.b32 [ %rd3 + 4 ], { %r5 };
    ld.shared.b32 %r6, [%r9];
"""
    assert list(accesses(ptx)) == [
        Access("ld", 16, True, True, ".L1::evict_first"),
        Access("ld", 8, True, False, ""),
        Access("ld", 2, False, True, ".nc"),
        Access("st", 4, False, True, ""),
    ]
