"""A pytest plugin for `bench.gpu_check --dry-run`: tensors of a missing GPU, without values.

Tests can be collected with it, as what they are given is made on the device, but not run.
"""

from torch._subclasses.fake_tensor import FakeTensorMode

FakeTensorMode(allow_non_fake_inputs=True).__enter__()
