"""The model without a GPU: closed forms, monotonicity, what it reads off code, and bad device files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from bench.__main__ import main
from bench.model.devices import gpu
from cbam_triton.demo.options import InputError
from cbam_triton.prediction.code import Code, Part, parts_of
from cbam_triton.prediction.devices import Gpu, shipped
from cbam_triton.prediction.launches import Work
from cbam_triton.prediction.predict import predicted, resident, total_us

H100 = shipped()["H100"]
LITTLE = Code(32, 0, 4, Part(instructions=10), ())
PTX = """
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    ld.global.b16 %rs1, [%rd2];
    bar.sync 0;
$L__BB0_1:
    @%p1 ld.global.v2.b32 {%r5, %r6}, [%rd3];
    add.f32 %f1, %f1, %f2;
    shfl.sync.bfly.b32 %r7, %r8, 16, 31, -1;
    mov.b32 %r9, %r7;
    @%p2 bra $L__BB0_1;
    ld.global.b32 %r10, [%rd4];
    ret;
"""


def copied(size: float, code: Code = LITTLE, programs: int = 132) -> Work:
    """A copy of so many bytes: read once, written once."""
    return Work("copy", programs, (), 2 * size, 2 * size, code)


def test_a_large_copy_takes_its_bytes_over_the_bandwidth_of_dram():
    found = predicted(copied(1e9), H100)
    assert found.limiter == "DRAM"
    assert found.low == pytest.approx(2e9 / H100.dram_gbs / 1e3)
    assert found.low <= found.us <= found.high


def test_a_reduction_that_l2_holds_takes_its_bytes_over_the_bandwidth_of_l2():
    found = predicted(Work("sum", 132, (), 0.0, 1e8, LITTLE), H100)
    assert found.limiter == "L2"
    assert found.low == pytest.approx(1e8 / H100.l2_gbs / 1e3)


def test_instructions_and_waits_limit_where_bytes_do_not():
    many = LITTLE._replace(outside=Part(instructions=10_000))
    found = predicted(copied(1e3, many, programs=132 * 16 * 50), H100)
    assert found.limiter == "instructions"
    assert found.low == pytest.approx(132 * 16 * 50 * 4 * 10_000 / (132 * 4) / (1e3 * H100.clock_ghz))
    chained = LITTLE._replace(outside=Part(loads=100, barriers=100))
    assert predicted(copied(1e3, chained, programs=1), H100).limiter == "waiting"


def test_an_sm_holds_what_registers_and_threads_allow():
    assert resident(LITTLE, H100) == 16  # 2048 threads
    assert resident(LITTLE._replace(registers=128), H100) == 4  # 65536 registers
    assert resident(LITTLE._replace(registers=255, warps=32), H100) == 1


positive = st.floats(1, 1e6)


@given(st.sampled_from(["dram_gbs", "l2_gbs", "clock_ghz"]), st.floats(1, 100), positive, st.integers(1, 10_000))
def test_a_faster_gpu_is_never_slower(name, factor, size, programs):
    code = Code(64, 0, 4, Part(300, 64, 3, 4, 10), (Part(40, 64, 1, 0, 0),))
    work = Work("any", programs, (5,), size * 1e3, 2e3 * size, code)
    faster = H100._replace(**{name: factor * getattr(H100, name)})
    assert predicted(work, faster).us <= predicted(work, H100).us * (1 + 1e-9)


@given(positive, st.floats(1, 100), st.integers(1, 10_000))
def test_more_bytes_and_more_programs_are_never_faster(size, factor, programs):
    less = predicted(copied(size * 1e3, programs=programs), H100)
    assert predicted(copied(factor * size * 1e3, programs=programs), H100).us >= less.us * (1 - 1e-9)
    assert predicted(copied(size * 1e3, programs=2 * programs), H100).us >= less.us * (1 - 1e-9)


def test_a_loop_is_told_from_what_is_outside():
    outside, (loop,) = parts_of(PTX)
    assert outside == Part(instructions=4, load_bytes=16 + 2 + 4, loads=2, barriers=1)
    assert loop == Part(instructions=4, load_bytes=8, loads=1, barriers=0, shuffles=1)


def test_a_part_of_a_gpu_has_its_share():
    part = H100.part(33)
    assert (part.sms, part.dram_gbs, part.held) == (33, H100.dram_gbs / 4, H100.held / 4)
    assert part.l2_ns == H100.l2_ns


def test_a_bad_device_file_is_an_error_that_says_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(H100._asdict()))
    assert gpu(str(path)) == H100
    values = H100._asdict()
    for text, message in (
        ("{", "is no device file"),
        ("[]", "must hold a JSON object"),
        (json.dumps({**values, "sms": 0}), "sms must be positive, got 0"),
        (json.dumps({**values, "watts": 9}), "unknown: watts"),
        (json.dumps({name: v for name, v in values.items() if name != "l2_ns"}), "missing: l2_ns"),
        (json.dumps({**values, "name": 3}), "name must be text, got 3"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            gpu(str(path))
    with pytest.raises(InputError, match="'H200X' is no device: give one of H100"):
        gpu("H200X")


def test_the_gaps_between_launches_count():
    found = [predicted(copied(1e6), H100)] * 3
    assert total_us(found, H100) == pytest.approx(3 * found[0].us + 2 * H100.launch_us)
    assert isinstance(H100, Gpu)


def test_the_interpreter_is_refused_in_a_line(capsys):
    from cbam_triton.kernels.launch.hardware import interpreted

    if not interpreted():
        pytest.skip("kernels are compiled here")
    assert main(["predict"]) == 2
    assert "the interpreter compiles nothing: unset TRITON_INTERPRET" in capsys.readouterr().err
