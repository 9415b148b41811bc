"""What `tuning.explain` says of the time of launches, and that asking leaves what was prepared as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from cbam_triton import CBAM, tuning
from cbam_triton.kernels.launch import hardware
from cbam_triton.prediction import here
from cbam_triton.prediction.code import Code, Part
from cbam_triton.prediction.devices import known, shipped

from .cases import normal

STAGES = ["channel_pool_kernel", "channel_mlp_kernel", "spatial_pool_kernel", "apply_gates_kernel"]
ROOT = Path(__file__).parents[1]


def test_a_driver_s_name_finds_its_gpu_and_no_other():
    assert known("NVIDIA A100-SXM4-40GB", 108) == shipped()["A100"]
    assert known("NVIDIA A10", 72) == shipped()["A10"]
    assert known("NVIDIA A10G", 80) is known("NVIDIA H100 PCIe", 114) is known("Triton interpreter", 1) is None


def test_each_call_has_its_own_launches_and_what_was_prepared_stays(device):
    module, x = CBAM(16, 4).to(device).eval(), normal((2, 16, 6, 5), device=device)
    module(x)  # with gradients: other launches of the same plan
    with torch.no_grad(), here.noted() as first:
        module(x)
    (plan,) = {call.plan for call in first}
    before = dict(plan.prepared)
    assert len(before) > len(first[0].launches) == len(STAGES)
    with torch.no_grad(), here.noted() as calls:
        module(x)
        module(x)
    assert [[one.name for one in call.launches] for call in calls] == [STAGES, STAGES]
    assert all(plan.prepared[key] is launch for key, launch in before.items())
    assert calls[0].launches[0].programs >= 2
    with torch.no_grad(), here.noted() as calls:
        pass
    assert calls == []


def test_nothing_is_predicted_for_an_unknown_gpu_or_without_compiled_code(device, monkeypatch):
    if device != "cpu":
        pytest.skip("a GPU's kernels are compiled")
    module, x = CBAM(16, 4).half().eval(), normal((2, 16, 6, 5)).half()
    assert tuning.explain(module, x)[0].predicted == ()
    monkeypatch.setattr(hardware, "facts", lambda device: hardware.DeviceFacts("NVIDIA H100 80GB HBM3", 132, 50 << 20))
    found = tuning.explain(module, x)
    assert found[0].predicted == ()
    assert "predicted" not in str(found)


def test_a_launch_whose_code_cannot_be_read_is_not_predicted_and_one_that_can_is(device, monkeypatch):
    module, x = CBAM(16, 4).to(device).half().eval(), normal((2, 16, 6, 5), device=device).half()
    with torch.no_grad(), here.noted() as calls:
        module(x)
    launches = [SimpleNamespace(name=one.name, programs=one.programs, warps=4, code="x") for one in calls[0].launches]
    call = calls[0]._replace(launches=launches)
    assert here.predicted_on(shipped()["H100"], call) == ()
    monkeypatch.setattr(here, "code_of", lambda code, warps: Code(32, 0, warps, Part(instructions=10), ()))
    found = here.predicted_on(shipped()["H100"], call)
    assert [one.kernel for one in found] == STAGES
    assert all(one.limiter == "waiting" and one.low <= one.us <= one.high for one in found)
    assert here.predicted_on(shipped()["H100"], call._replace(x=x.float())) == ()


SCRIPT = """
import json, torch
from bench.stub_driver import stub_driver

with stub_driver():
    from cbam_triton import CBAM, tuning
    from cbam_triton.kernels.launch import hardware, tensors

    facts = hardware.DeviceFacts("NVIDIA H100 80GB HBM3", 132, 50 << 20)
    hardware.facts = tensors.facts = lambda device: facts
    x = torch.zeros(4, 64, 14, 14, dtype=torch.float16)
    found = tuning.explain(torch.nn.Sequential(CBAM(64), CBAM(64)).half(), x)
    print(json.dumps([[one.kernel for one in entry.predicted] for entry in found]))
    print(str(found).splitlines()[1])
"""


@pytest.mark.slow
def test_explain_predicts_what_was_compiled():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names, line = done.stdout.splitlines()
    assert json.loads(names) == [STAGES, STAGES]
    assert line.startswith("  predicted channel_pool: ")
    assert line.endswith("limited by waiting")


def test_an_explanation_without_a_kernel_has_no_prediction():
    assert tuning.explain(nn.Identity(), torch.zeros(1)) == []
