"""Gradients take one thread where other work keeps the cores of the others, and all of them elsewhere."""

import pytest
import torch

import mfac
from mfac.gradients import threads
from mfac.gradients.threads import ThreadChoice, threads_restored

pytestmark = pytest.mark.cpu_only("threads of the CPU")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Seconds that pass only when a test says so."""

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    fake = Clock()
    monkeypatch.setattr(threads, "time", fake)
    return fake


def counts(choice: ThreadChoice, clock, number: int, seconds_with_all) -> list[int]:
    """The threads of each batch, if one takes a second with one thread."""
    seen = []
    for batch in choice.over(range(number)):
        seen.append(torch.get_num_threads())
        clock.now += 1.0 if seen[-1] == 1 else seconds_with_all(batch)
    return seen


def test_all_threads_are_used_while_they_pay(clock):
    with threads_restored():
        assert counts(ThreadChoice(), clock, 300, lambda batch: 1.9) == [1, 1] + 298 * [2]
        assert torch.get_num_threads() == 2


def test_a_single_slow_batch_is_chance(clock):
    with threads_restored():
        found = counts(ThreadChoice(), clock, 100, lambda batch: 9.0 if batch % 10 == 0 else 0.6)
        assert found == [1, 1] + 98 * [2]


def test_one_thread_is_used_while_others_make_it_wait(clock):
    with threads_restored():
        choice = ThreadChoice()
        assert counts(choice, clock, 140, lambda batch: 9.0) == [1, 1, 2, 2] + 128 * [1] + [2] + 7 * [1]
        assert torch.get_num_threads() == 1  # for what follows the gradients
        assert counts(choice, clock, 123, lambda batch: 0.6) == 121 * [1] + 2 * [2]
        assert torch.get_num_threads() == 2
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
