"""What is known of a launch before it runs: loops of machine code, and how many programs an SM holds."""

from types import SimpleNamespace

import pytest

from bench import static
from bench.machine_code import Line, Loop, lines_of_amdgcn, lines_of_sass, loops_of, main_loop
from cbam_triton.prediction.occupancy import limits_of, resident

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00 */
                                                                           /* 0x00 */
        /*0010*/              @!P2 LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0020*/               @P0 BRA 0x90 ;
        /*0030*/                   LDG.E.64 R8, desc[UR6][R22.64] ;
        /*0040*/                   LDG.E.U16 R9, desc[UR6][R22.64] ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   LDG.E.STRONG.GPU R9, desc[UR6][R22.64] ;
        /*0070*/               @P3 BRA 0x60 ;
        /*0080*/              @!P0 BRA 0x30 ;
        /*0090*/                   LDS.128 R4, [R2] ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   BRA 0xb0;
        /*00c0*/                   NOP;
"""
AMD = """
\ts_load_dwordx4 s[0:3], s[0:1], 0x0
.LBB0_1:
\tglobal_load_dwordx4 v[2:5], v[30:31], off
\tbuffer_load_b128 v[2:5], v[30:31], off
\tglobal_load_ushort v2, v[30:31], off
\ts_barrier
\ts_cbranch_scc0 .LBB0_1
\ts_endpgm
\t.section .rodata
; Occupancy: 6
    .vgpr_count:     72
    .vgpr_spill_count: 0
"""


def test_loops_of_sass_are_told_apart_and_the_main_one_loads_most():
    code = lines_of_sass(SASS)
    outside, loops = loops_of(code)
    assert outside == Loop(instructions=6, loads=1, load_bytes=16)
    assert loops == [Loop(4, 2, 10, 1), Loop(2, 1, 4, 0)]
    assert main_loop(code) == loops[0]
    assert main_loop(code[:3]) is None
    assert main_loop([]) is None


def test_two_jumps_back_to_one_place_are_one_loop():
    code = [Line(16, False), Line(0, False, 0), Line(0, True), Line(0, False, 0)]
    assert loops_of(code) == (Loop(), [Loop(4, 1, 16, 1)])


def test_loops_of_amds_assembly():
    outside, loops = loops_of(lines_of_amdgcn(AMD))
    assert outside == Loop(instructions=2)
    assert loops == [Loop(instructions=5, loads=3, load_bytes=34, barriers=1)]


@pytest.mark.parametrize("architecture, warps, registers, shared, held", [
    ("sm_80", 4, 32, 0, 16), ("sm_80", 1, 32, 0, 32), ("sm_86", 1, 32, 0, 16), ("sm_80", 4, 65, 0, 7),
    ("sm_80", 4, 32, 40 * 1024, 4), ("sm_75", 4, 32, 40 * 1024, 1), ("sm_90", 32, 255, 0, 1),
])  # fmt: skip
def test_an_sm_holds_what_its_scarcest_resource_allows(architecture, warps, registers, shared, held):
    limits = limits_of(architecture)
    assert limits is not None
    assert resident(limits, warps, registers, shared) == held


def test_the_facts_of_an_nvidia_launch(monkeypatch):
    monkeypatch.setattr(static, "resources", lambda cubin: {"registers": 128, "spills": 0})
    monkeypatch.setattr(static, "sass", lambda cubin: SASS)
    compiled = SimpleNamespace(metadata=SimpleNamespace(shared=512), asm={"cubin": b""})
    found = static.static_of(compiled, "sm_90", programs=1056, warps=4, sms=132)
    assert (found["programs_per_sm"], found["occupancy"], found["waves"]) == (4, 0.25, 2.0)
    assert found["bytes_in_flight"] == 10 * 4 * 128
    assert found["loop"] == {"instructions": 4, "loads": 2, "load_bytes": 10, "barriers": 1}
    assert static.static_of(compiled, "sm_90", 132, 4, 132)["bytes_in_flight"] == 10 * 128
    monkeypatch.setattr(static, "sass", lambda cubin: None)
    found = static.static_of(compiled, "sm_999", 132, 4, 132)
    assert found == {"programs": 132, "warps": 4, "shared": 512, "registers": 128, "spills": 0}


def test_the_facts_of_an_amd_launch():
    compiled = SimpleNamespace(metadata=SimpleNamespace(shared=0), asm={"amdgcn": AMD})
    found = static.static_of(compiled, "gfx942", programs=608, warps=4, sms=304)
    assert (found["registers"], found["programs_per_sm"], found["occupancy"]) == (72, 6, 0.75)
    assert found["waves"] == 608 / (6 * 304)
    assert found["bytes_in_flight"] == 34 * 64 * 4 * 2
