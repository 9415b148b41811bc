"""`python -m bench device`: its kernels, numbers from their times, a file that predict takes."""

import pytest
import torch

from bench.__main__ import main
from cbam_triton.prediction.devices import Gpu, gpu_of

device_module = pytest.importorskip("bench.lab.device")
FACTS = {"name": "Made up", "architecture": "sm_90", "sms": 1, "clock_ghz": 1.5, "l2_mib": 0.125, "threads": 2048}
SMALL = device_module.Sizes(dram=1 << 16, dram_lines=64, l2_lines=8, steps=4, launches=2, rounds=2)


def test_a_chain_goes_through_every_line_once():
    ring = device_module.cycle(50)
    place, seen = 0, set()
    for _ in range(50):
        place = int(ring[place])
        seen.add(place)
    assert place == 0
    assert seen == {32 * line for line in range(50)}


def test_kernels_read_all_and_follow_the_chain(device):
    x = torch.arange(3000.0, device=device)
    out = torch.empty(4, device=device)
    device_module.read_kernel[(4,)](x, out, 3000, 3, BLOCK=1024)
    assert out.sum().item() == pytest.approx(3 * x.sum().item(), rel=1e-5)
    ring, place = device_module.cycle(16).to(device), torch.zeros(1, dtype=torch.int32, device=device)
    device_module.chase_kernel[(1,)](ring, place, 16, num_warps=1)
    assert place.item() == 0
    counter = torch.zeros(2, dtype=torch.int32, device=device)
    device_module.atomic_kernel[(1,)](counter, 5, num_warps=1)
    assert counter.tolist() == [6, 0]


def test_what_is_measured_is_a_device_file(device):
    found = device_module.measured(torch.device(device), FACTS, SMALL)
    row = {name: value for name, value in found.items() if name in Gpu._fields}
    assert gpu_of(row, "test").name == "Made up"
    assert found["atomic_ns"] > 0
    assert 0.3 <= found["l2_share"] <= 1


def test_no_launch_of_a_chain_reads_what_one_before_it_read(monkeypatch, device):
    lines, visited = 64, []
    ring = device_module.cycle(lines)

    def chased(launch, device, steps):
        before = places[-1].item()
        for _ in range(5):
            launch(steps)
            after = places[-1].item()
            while before != after:
                before = int(ring[before])
                visited.append(before)
        return 1.0

    places, zeros = [], torch.zeros
    monkeypatch.setattr(device_module.torch, "zeros", lambda *a, **k: places.append(zeros(*a, **k)) or places[-1])
    monkeypatch.setattr(device_module, "cycle", lambda lines: ring)
    monkeypatch.setattr(device_module, "_slope", chased)
    device_module._chain_ns(torch.device(device), lines, 12)
    assert len(visited) == len(set(visited)) == 60


def test_bandwidth_is_bytes_over_seconds_without_what_a_launch_costs(monkeypatch, device):
    took = iter([20e-6 + 3e-6, 20e-6 + 6e-6] * 2)
    monkeypatch.setattr(device_module, "_seconds", lambda call, device: next(took))
    assert device_module.read_gbs(torch.device(device), 1, 1 << 20, 3) == pytest.approx((1 << 20) / 1000)
    assert device_module.copy_gbs(torch.device(device), 1 << 20) == pytest.approx(2 * (1 << 20) / 1500)


def test_a_slope_takes_what_both_chains_cost_out(monkeypatch):
    took = iter([5e-6 + 100e-9, 5e-6 + 200e-9])
    monkeypatch.setattr(device_module, "_seconds", lambda call, device: next(took))
    assert device_module._slope(lambda steps: None, torch.device("cpu"), 10) == pytest.approx(10)


def test_without_a_gpu_it_says_so(capsys):
    assert main(["device", "--device", "cpu"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
