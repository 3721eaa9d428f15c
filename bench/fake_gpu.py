"""A plugin of pytest for `bench.gpu_check --dry-run`: tensors of a GPU that is not there, without values.

Tests can be collected with it, as what they are given is made on the device, but not run.
"""

from torch._subclasses.fake_tensor import FakeTensorMode

FakeTensorMode(allow_non_fake_inputs=True).__enter__()
