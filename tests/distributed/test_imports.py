"""One process pays nothing for several: not in imports, nor without torch.distributed."""

import subprocess
import sys

import pytest

TRAIN = """
import torch, mfac
parameter = torch.nn.Parameter(torch.ones(3))
opt = mfac.MFAC([parameter])
for _ in range(3):
    parameter.grad = torch.ones(3)
    opt.step()
assert bool((parameter < 1).all())
opt.load_state_dict(opt.state_dict())
"""
NO_DISTRIBUTED = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.distributed":
            del sys.modules["torch._C"]._c10d_init, sys.modules["torch._C"]._rpc_init
        return None
sys.meta_path.insert(0, Without())
import torch
assert not torch.distributed.is_available()
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_takes_long_to_import_is_imported_when_it_is_needed():
    run(
        "import sys, mfac\n"
        "found = {'torch._dynamo', 'torch.distributed.tensor'} & set(sys.modules)\n"
        "import torch\n"
        "assert not found, found\n"
    )


@pytest.mark.cpu_only("a build of torch without torch.distributed")
def test_an_optimizer_works_without_torch_distributed():
    run(NO_DISTRIBUTED + TRAIN)
