"""What a plan of a layer-wise run says that the run takes, and what the run then takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch, mfac
from torch import nn
torch.set_num_threads(1)
width, samples, settings = int(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3])
def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
def network(width):
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
data = [(torch.randn(samples, 12), torch.randint(3, (samples,))) for _ in range(40)]
loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
of_finish = {"finish": "fisher", "loss_fn": loss} if settings.pop("finish", False) else {}
more = {"allocation": "uniform"}
arguments = {"sparsity": 0.5, **settings, **of_finish}
mfac.prune_layerwise(network(40), data, **arguments, **more)  # loads what is loaded on first use
model = network(width)
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
mfac.prune_layerwise(model, data, **arguments, **more)
print((kilobytes("VmHWM") - before) * 1024, mfac.plan_layerwise(network(width), data, **arguments).bytes)
"""


@pytest.mark.parametrize(
    ("samples", "settings"),
    [
        (4, {"method": "sparsegpt"}),
        (4, {"method": "alps"}),
        (4, {"method": "magnitude", "finish": True, "sparsity": 0.2}),
        (400, {"method": "magnitude", "finish": True}),
    ],
)
def test_a_run_takes_the_memory_that_its_plan_says(samples: int, settings: dict[str, object]):
    command = [sys.executable, "-c", PROGRAM, "1200", str(samples), repr(settings)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stderr
    measured, planned = map(int, run.stdout.split())
    # What a solver holds depends on its way through the layer; what a layer keeps of one batch is
    # not in the plan. docs/guides/layerwise.md says "up to a third".
    assert planned / 1.5 <= measured <= 1.33 * planned, (measured, planned)
