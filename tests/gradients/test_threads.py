"""Gradients of small batches take one thread, others all, whatever the clock says."""

import pytest
import torch

import mfac
from mfac.gradients import threads
from mfac.gradients.threads import OperationCount, threads_for

pytestmark = pytest.mark.cpu_only("threads of the CPU")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def counted(model, *inputs) -> int:
    count = OperationCount()
    with count.over(model):
        model(*inputs)
    return count.total


def test_operations_are_those_of_the_layers():
    nn = torch.nn
    assert counted(nn.Linear(5, 7), torch.ones(3, 5)) == 6 * 3 * 5 * 7
    assert counted(nn.Conv2d(2, 3, 3), torch.ones(4, 2, 6, 6)) == 6 * 4 * 16 * 3 * 2 * 9
    assert counted(nn.Conv2d(4, 8, 3, groups=4), torch.ones(1, 4, 5, 5)) == 6 * 9 * 8 * 9
    assert counted(nn.ConvTranspose1d(2, 3, 4), torch.ones(1, 2, 5)) == 6 * 10 * 3 * 4
    assert counted(nn.GRU(3, 4, batch_first=True), torch.ones(2, 6, 3)) == 6 * 12 * (12 * 3 + 12 * 4)
    assert counted(nn.Sequential(nn.Flatten(), nn.Tanh()), torch.ones(2, 3, 4)) == 0


def test_small_batches_take_one_thread_and_large_ones_all():
    with threads_for(10):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads_for(10**12):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("limit", "expected"), [(1e12, 5 * [1]), (1.0, [1] + 4 * [2])])
def test_the_first_batch_decides(monkeypatch, limit, expected):
    monkeypatch.setattr(threads, "_OPERATIONS_FOR_ALL", limit)
    seen = []

    def loss(model, batch):
        seen.append(torch.get_num_threads())
        return model(batch).sum()

    mfac.collect_gradients(torch.nn.Linear(3, 1), loss, [torch.ones(2, 3)] * 5, 5, mode="eval")
    assert seen == expected
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_put_back():
    model = torch.nn.Linear(3, 1)
    data = [torch.ones(2, 3)] * 2

    def fails(model, batch):
        raise KeyError

    mfac.collect_gradients(model, lambda model, batch: model(batch).sum(), data, 1)
    assert torch.get_num_threads() == 2
    for call in (mfac.collect_gradients, lambda *arguments: mfac.prune(*arguments, sparsity=0.5)):
        with pytest.raises(KeyError):
            call(model, fails, data)
        assert torch.get_num_threads() == 2
