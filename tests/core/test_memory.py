"""Peak memory of a process that holds 256 MB of gradients and multiplies by the inverse Fisher."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cpu_only("reads the memory of a process")

PROGRAM = """
import torch, mfac
torch.set_num_threads(2)
def kilobytes(name):  # of this process alone; resource.getrusage would start from its parent's peak
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
small = torch.ones(4, 5000)
mfac.EmpiricalFisher(small, 1e-3).ihvp(small[0])  # loads what is loaded on first use
grads, v = torch.ones(64, 1_000_000), torch.ones(1_000_000)
before = kilobytes("VmRSS")
F = mfac.EmpiricalFisher(grads, {arguments})
F.ihvp(v)
F.inverse_diagonal()
F.logdet()
print((kilobytes("VmHWM") - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("arguments", ["1e-3", "mfac.relative(0.1), 1000"])
def test_extra_memory_does_not_grow_with_the_window(arguments: str):
    # Three vectors of d float64, 24 MB; column tiles of 8 MB, their product and their squares; the
    # blocks' factors, 1000 · 64² float64, 33 MB; libraries' work space. A float64 copy of the
    # window is 512 MB more.
    program = PROGRAM.format(arguments=arguments)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stderr
    assert 0 < int(run.stdout) < 100
