"""MFAC: its step against the dense oracle, momentum and weight decay, checkpoints, and errors."""

from __future__ import annotations

import copy

import pytest
import torch
from device import look, refusal
from models import accuracy, batches, classifier, conv_classifier, cross_entropy
from oracle import fisher as dense_fisher

import mfac


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def backward(model, batch):
    model.zero_grad()
    cross_entropy(model, batch).backward()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
def test_steps_are_those_of_the_dense_fisher(momentum, decay, decoupled):
    rank, lr, damping = 4, 0.05, 1e-2
    model = classifier(hidden=5, dtype=torch.float64)
    opt = mfac.MFAC(
        model.parameters(), lr, rank, damping, momentum, decay, torch.float64, decoupled_weight_decay=decoupled
    )
    w, average, window = flat(model.parameters()), 0.0, []
    for batch in batches(3 * rank):
        backward(model, batch)
        g = flat(parameter.grad for parameter in model.parameters())
        if decay and not decoupled:
            g = g + decay * w
        window = [*window, g][-rank:]
        step = torch.linalg.solve(dense_fisher(torch.stack(window), damping, num_terms=rank), g)
        average = momentum * average + (1 - momentum) * step
        w = w * (1 - lr * decay if decoupled else 1) - lr * (average if momentum else step)
        opt.step()
        # Dense 83 x 83 solves at condition < 1e4 and twelve steps: 1e-12 relative, with room.
        torch.testing.assert_close(flat(model.parameters()), w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_weights_in_any_memory_format_move_alike(momentum, density):
    """Contiguous weights move in the window's pass, others by torch after: equal to a rounding."""
    models = [conv_classifier().double() for _ in range(2)]
    with torch.no_grad():  # one parameter that no pass can take for a piece of a vector
        models[1][4].weight = torch.nn.Parameter(models[1][4].weight.detach().t().contiguous().t())
    for model in models:
        opt = mfac.MFAC(model.parameters(), 0.05, 4, 1e-2, momentum, 0.1, torch.float64, density)
        for batch in batches(8, shape=(1, 6, 6)):
            backward(model, batch)
            opt.step()
    torch.testing.assert_close(flat(models[0].parameters()), flat(models[1].parameters()), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autograd_sees_that_weights_have_moved(dtype):
    model = classifier(dtype=dtype)
    opt = mfac.MFAC(model.parameters(), 0.05, 4, 1e-2)
    backward(model, batches(1)[0])
    versions = [parameter._version for parameter in model.parameters()]
    before = flat(model.parameters()).clone()
    opt.step()
    assert all(p._version > version for p, version in zip(model.parameters(), versions, strict=True))
    assert not torch.equal(flat(model.parameters()), before)


def test_momentum_leaves_out_what_a_sparse_row_carries():
    rank, lr, beta = 4, 0.05, 0.9
    model = classifier(hidden=5, dtype=torch.float64)
    opt = mfac.MFAC(model.parameters(), lr, rank, 1e-2, beta, window_dtype=torch.float64, density=0.1)
    w, average, rows = flat(model.parameters()), 0.0, []
    error = torch.zeros_like(w)
    for batch in batches(3 * rank):
        backward(model, batch)
        error = error + flat(parameter.grad for parameter in model.parameters())
        carried = error.abs().topk(-(-len(w) // 10)).indices  # all 83 weights are one block
        row = torch.zeros_like(w).index_put((carried,), error[carried])
        error = error - row
        rows = [*rows, row][-rank:]
        step = torch.linalg.solve(dense_fisher(torch.stack(rows), 1e-2, num_terms=rank), row)
        average = beta * average + (1 - beta) * step
        average[carried] = 0
        w = w - lr * average.index_put((carried,), step[carried])
        opt.step()
        torch.testing.assert_close(flat(model.parameters()), w, rtol=1e-9, atol=1e-11)  # as above


def test_the_momentum_of_a_parameter_without_a_gradient_stays():
    model = classifier()
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4, momentum=0.9, rule="paper")
    for batch in batches(2):
        backward(model, batch)
        opt.step()
    before = opt.state_dict()["momentum"].clone()
    backward(model, batches(1, seed=5)[0])
    model[0].weight.grad = None
    kept = model[0].weight.clone()
    opt.step()
    after, size = opt.state_dict()["momentum"], kept.numel()
    assert torch.equal(model[0].weight, kept)
    assert torch.equal(after[:size], before[:size]) and not torch.equal(after[size:], before[size:])


def test_a_sparse_row_that_carries_a_parameter_without_a_gradient_leaves_its_momentum():
    parameters = [torch.nn.Parameter(torch.zeros(20)) for _ in range(2)]
    opt = mfac.MFAC(parameters, lr=1.0, rank=4, damping=0.1, momentum=0.9, density=0.3)
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = torch.randn(20)
        opt.step()
    before, kept = opt.state_dict()["momentum"].clone(), parameters[1].detach().clone()
    parameters[0].grad, parameters[1].grad = torch.zeros(20), None
    opt.step()
    assert bool((opt.window.carried_columns() >= 20).any())
    assert torch.equal(opt.state_dict()["momentum"][20:], before[20:]) and torch.equal(parameters[1], kept)


def test_momentum_given_up_is_not_taken_up_again():
    model = classifier()
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4, momentum=0.9)
    for momentum in (0.9, 0.0):
        opt.param_groups[0]["momentum"] = momentum
        backward(model, batches(1)[0])
        opt.step()
    assert opt.state_dict()["momentum"] is None


def test_a_reshaped_parameter_goes_on():
    parameter = torch.nn.Parameter(torch.ones(1, 4))
    opt = mfac.MFAC([parameter], lr=0.1, rank=2)
    parameter.grad = torch.ones(1, 4)
    opt.step()
    parameter.data = parameter.data.view(4)
    parameter.grad = torch.ones(4)
    opt.step()
    assert parameter.shape == (4,) and bool((parameter < 1).all())


def test_it_trains():
    model, held_out = classifier(), batches(20, size=64, seed=9)
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=32, damping=1e-3, momentum=0.9)
    untrained = accuracy(model, held_out)
    for batch in batches(200, size=32, seed=2):
        backward(model, batch)
        opt.step()
    assert accuracy(model, held_out) > max(0.85, untrained + 0.2)


def test_groups_have_rates_of_their_own():
    model = classifier(dtype=torch.float64)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "weight_decay": 0.0}]
    opt = mfac.MFAC(groups, lr=1e-2, rank=4, window_dtype=torch.float64)
    before = copy.deepcopy(model)
    backward(model, batches(1)[0])
    opt.step()
    assert torch.equal(model[0].weight, before[0].weight) and not torch.equal(model[2].weight, before[2].weight)


def test_a_parameter_without_a_gradient_stays():
    model = classifier()
    unused = torch.nn.Parameter(torch.ones(3))
    opt = mfac.MFAC([unused, *model.parameters()], lr=1e-2, rank=4, momentum=0.9, weight_decay=0.1)
    backward(model, batches(1)[0])
    opt.step()
    assert torch.equal(unused, torch.ones(3))
    assert not bool(opt.window.rows[:, :3].any())


def test_closure_scheduler_and_zero_grad_work_as_with_any_optimizer():
    model, batch = classifier(), batches(1)[0]
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)

    def closure():
        opt.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        return loss

    first = opt.step(closure)
    schedule.step()
    assert float(first.detach()) > 0 and opt.param_groups[0]["lr"] == 5e-3


def test_a_checkpoint_continues_bit_by_bit(tmp_path):
    model, data = classifier(), batches(12)
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4, momentum=0.9)
    for batch in data[:6]:
        backward(model, batch)
        opt.step()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "checkpoint.pt")
    for batch in data[6:]:
        backward(model, batch)
        opt.step()

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = classifier(seed=1)
    resumed.load_state_dict(saved["model"])
    again = mfac.MFAC(resumed.parameters(), lr=1e-2, rank=4, momentum=0.9)
    again.load_state_dict(saved["opt"])
    for batch in data[6:]:
        backward(resumed, batch)
        again.step()
    assert torch.equal(flat(model.parameters()), flat(resumed.parameters()))


def test_copies_go_on_by_themselves():
    model, data = classifier(), batches(3)
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4, momentum=0.9)
    backward(model, data[0])
    opt.step()
    other_model, other = copy.deepcopy((model, opt))
    for m, o in ((model, opt), (other_model, other)):
        backward(m, data[1])
        o.step()
    assert torch.equal(flat(model.parameters()), flat(other_model.parameters()))
    assert other.window.rows.data_ptr() != opt.window.rows.data_ptr()


def test_a_bad_gradient_changes_nothing():
    model = classifier()
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4)
    backward(model, batches(1)[0])
    opt.step()
    before, rows = flat(model.parameters()), opt.window.rows.clone()
    model[0].weight.grad[0, 0] = float("inf")
    message = refusal(r"`gradient` should be finite. Found a NaN or infinity; the window is unchanged")
    with pytest.raises(ValueError, match=message):
        opt.step()
        look(opt.window)
    assert torch.equal(flat(model.parameters()), before) and torch.equal(opt.window.rows, rows)


def test_a_zero_gradient_with_relative_damping_takes_no_step():
    model = classifier()
    opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=4, damping=mfac.relative(0.1))
    before = flat(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    assert torch.equal(flat(model.parameters()), before)


def test_a_state_of_other_groups_changes_nothing():
    model = classifier()
    opt = mfac.MFAC([{"params": model[0].parameters()}, {"params": model[2].parameters()}], rank=4)
    other = mfac.MFAC(classifier().parameters(), rank=4)
    other.window.push(torch.ones(other.window.dim))
    with pytest.raises(ValueError, match="parameter group"):
        opt.load_state_dict(other.state_dict())
    assert [window.num_filled for window in opt.windows] == [0, 0]


def trained(**options):
    model = classifier()
    opt = mfac.MFAC(model.parameters(), **{"rank": 4, "momentum": 0.9, "rule": "paper", **options})
    backward(model, batches(1)[0])
    opt.step()
    return opt


def test_state_errors():
    opt = trained()
    saved = opt.state_dict()
    with pytest.raises(KeyError, match=r"should be of mfac\.MFAC"):
        opt.load_state_dict(torch.optim.SGD(classifier().parameters()).state_dict())
    with pytest.raises(KeyError, match=r"entry 'param_groups'"):
        opt.load_state_dict({"state": {}})
    for other, message in (
        ({"rank": 5}, r"should have rank 4 in group 0, .* Found 5"),
        ({"density": 0.5}, r"should have density 1.0 in group 0, .* Found 0.5"),
        ({"window_dtype": torch.bfloat16}, r"window_dtype torch.float32 in group 0.* Found torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            opt.load_state_dict(trained(**other).state_dict())
    for options, error, message in (
        ({"momentum": 2.0}, ValueError, r"`momentum` .* Found 2.0"),
        ({"lr": float("nan")}, ValueError, r"`lr` should be finite"),
        ({"weight_decay": ...}, KeyError, r"should have an entry 'weight_decay'"),
    ):
        group = {**saved["param_groups"][0], **options}
        groups = [{name: value for name, value in group.items() if value is not ...}]
        with pytest.raises(error, match=message):
            opt.load_state_dict({**saved, "param_groups": groups})
    for entry, value, error, message in (
        ("momentum", torch.zeros(3), ValueError, r"'momentum' of shape \[32, 12\] .* parameter 0 of group 0"),
        ("momentum", 0.5, TypeError, r"a tensor as 'momentum'. Found float"),
        ("rows", ..., KeyError, r"parameter 0 of group 0 should have an entry 'rows'"),
    ):
        first = {**saved["state"][0], entry: value}
        first = {name: value for name, value in first.items() if value is not ...}
        with pytest.raises(error, match=message):
            opt.load_state_dict({**saved, "state": {**saved["state"], 0: first}})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"`lr` should be finite and >= 0. Found -1.0"),
        ({"momentum": 1.0}, ValueError, r"`momentum` .* Found 1.0"),
        ({"weight_decay": -0.5}, ValueError, r"`weight_decay` .* Found -0.5"),
        ({"rank": 0}, ValueError, r"`rank` should be at least 1. Found 0"),
        ({"damping": -1e-5}, ValueError, r"`damping` .* Found -1e-05"),
        (
            {"window_dtype": torch.int32},
            TypeError,
            r"`window_dtype` should be float32, .* or int8. Found torch.int32",
        ),
        ({"density": 2}, ValueError, r"`density` should be finite and > 0 and <= 1. Found 2"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mfac.MFAC(classifier().parameters(), **arguments)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match=r"`params` should be real floating-point.*Found torch.complex64"):
        mfac.MFAC([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])
