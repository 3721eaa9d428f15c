"""Steps under what else a loop does: weights set from outside, other dtypes, autocast, switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim.runs import OF_RULES, copied
from torch import Tensor, nn

import mfac
from mfac.window.rounding import compensated

RULES = (*OF_RULES, "spectral")


def optimizer(parameters: Any, rule: str, **options: Any) -> mfac.MFAC:
    return mfac.MFAC(parameters, rule=rule, rank=4, lr=1e-2, damping=0.1, **options)


def go(opt: mfac.MFAC, steps: int, seed: int = 0, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in opt.param_groups[0]["params"]:
            p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)
        opt.step()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_set_to_zero_from_outside_stay_finite(rule: str, dtype: torch.dtype):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(8, 6, dtype=dtype))
    opt = optimizer([p], rule, rounding="compensated")
    go(opt, 5)
    with torch.no_grad():
        p.clamp_(min=0)
    go(opt, 3, seed=1)
    assert bool(torch.isfinite(p).all()) and bool(torch.isfinite(compensated(p, found(opt, p))).all())


def found(opt: mfac.MFAC, p: Tensor) -> Tensor:
    compensation: Tensor = opt.state[p]["compensation"]
    return compensation


@pytest.mark.parametrize("rule", RULES)
def test_a_compensation_stays_with_its_weight_as_masks_change(rule: str):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 4, dtype=torch.bfloat16))
    model = nn.ParameterDict({"p": p})
    opt = optimizer([p], rule, rounding="compensated")
    first, second = torch.zeros(2, 24, dtype=torch.bool)
    first[:12], second[6:18] = True, True
    handle = mfac.Masks({"p": first.view(6, 4)}).attach(model, opt)
    go(opt, 5, scale=0.01)
    before = torch.zeros(24, dtype=torch.int16)
    before[first] = found(opt, p)
    assert int((before != 0).sum()) > 6
    handle.remove()
    mfac.Masks({"p": second.view(6, 4)}).attach(model, opt)
    opt.param_groups[0]["lr"] = 0.0
    go(opt, 1)
    after = torch.zeros(24, dtype=torch.int16)
    after[second] = found(opt, p)
    assert torch.equal(after[6:12], before[6:12]) and not bool(after[12:18].any())


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_steps_do_not_depend_on_the_default_dtype(default: torch.dtype):
    weights = []
    for dtype in (torch.float32, default):
        p = nn.Parameter(torch.linspace(-1, 1, 24).view(6, 4))
        torch.set_default_dtype(dtype)
        try:
            opt = optimizer([p], "adam")
            for t in range(300):
                p.grad = torch.linspace(-1, 1, 24, dtype=torch.float32).view(6, 4).roll(t % 5, 1)
                opt.step()
        finally:
            torch.set_default_dtype(torch.float32)
        assert float(opt.state[p]["step"]) == 300 and opt.state[p]["step"].dtype == torch.float32
        weights.append(p.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("rule", ["adam", "spectral"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_gradient_whose_square_overflows_is_not_stored(rule: str, nonfinite: Any):
    p, q = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5))
    opt = optimizer([p, q], rule, nonfinite=nonfinite)
    go(opt, 3)
    before = copied(opt.state_dict()), p.detach().clone()
    p.grad, q.grad = torch.ones(4, 3), torch.ones(5)
    p.grad[1, 2] = 1e21
    if nonfinite == "raise":
        with pytest.raises(ValueError, match=r"parameter number 0, shape \[4, 3\]\.$"):
            opt.step()
    else:
        opt.step()
        assert opt.skipped
    assert torch.equal(p, before[1])
    assert torch.equal(opt.state[p]["square_average"], before[0]["state"][0]["square_average"])
    opt.load_state_dict(opt.state_dict())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_in_autocast_is_the_step_outside(rule: str, dtype: torch.dtype):
    weights = []
    for enabled in (False, True):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(8, 6))
        opt = optimizer([p], rule)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            go(opt, 6)
        weights.append(p.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_another_rounding_is_followed(rounding: str):
    p = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    opt = optimizer([p], "paper", rounding="compensated")
    go(opt, 3)
    opt.param_groups[0].update(rounding=rounding, lr=1e-9)
    before = p.detach().clone()
    go(opt, 1)
    assert "compensation" not in opt.state[p]
    if rounding == "nearest":
        go(opt, 5)
        assert torch.equal(p, before)
    opt.param_groups[0]["rounding"] = "compensated"
    go(opt, 1)
    assert "compensation" in opt.state[p]


@pytest.mark.parametrize("rule", ["adam", "spectral"])
def test_held_gradients_are_those_of_accepted_steps_and_come_back_with_a_state(rule: str):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, 4))
    opt = optimizer([p], rule)
    go(opt, 4)
    held = opt.held_gradients()[p].clone()
    p.grad = torch.full((5, 4), torch.nan)
    with pytest.raises(ValueError, match="finite"):
        opt.step()
    assert torch.equal(opt.held_gradients()[p], held)
    other = optimizer([nn.Parameter(p.detach().clone())], rule)
    other.load_state_dict(copied(opt.state_dict()))
    assert torch.equal(next(iter(other.held_gradients().values())), held)
    newest = torch.randn(5, 4)
    p.grad = newest.clone()
    opt.step()
    last = opt.held_gradients()[p][opt.window.newest]
    torch.testing.assert_close(last, newest.reshape(-1))


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_refused_step_keeps_the_momentum_that_a_schedule_has_taken_to_zero(nonfinite: Any):
    p = nn.Parameter(torch.ones(6))
    opt = optimizer([p], "paper", momentum=0.9, nonfinite=nonfinite)
    go(opt, 3)
    before = opt.state[p]["momentum"].clone()
    opt.param_groups[0]["momentum"] = 0.0
    p.grad = torch.full((6,), torch.inf)
    if nonfinite == "raise":
        with pytest.raises(ValueError, match="finite"):
            opt.step()
    else:
        opt.step()
    assert torch.equal(opt.state_dict()["state"][0]["momentum"], before)
    go(opt, 1)
    assert "momentum" not in opt.state[p]


@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (6, 4, 1, 1), (6, 4, 3, 3), (1, 4, 3, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_masked_weights_in_channels_last_move_as_others(shape: tuple[int, ...], rule: str):
    weights = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(shape).to(memory_format=layout))
        opt = optimizer([p], rule)
        mask = torch.rand(shape) < 0.5
        mfac.Masks({"p": mask}).attach(nn.ParameterDict({"p": p}), opt)
        go(opt, 4)
        assert not bool(p[~mask].any())
        weights.append(p.detach().contiguous())
    assert torch.equal(*weights)


def test_a_group_of_few_weights_with_a_damping_too_small_lets_no_other_move():
    p, q = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(2))
    opt = mfac.MFAC([{"params": [p]}, {"params": [q], "damping": 1e-30}], rule="paper", rank=4, damping=0.1)
    before = p.detach().clone()
    with pytest.raises(torch.linalg.LinAlgError, match="Increase `damping`"):
        for _ in range(4):
            before = p.detach().clone()
            p.grad, q.grad = torch.ones(6), torch.ones(2)
            opt.step()
    assert torch.equal(p, before)


def test_a_repeated_parameter_counts_once_and_its_state_goes_on():
    p = nn.Parameter(torch.ones(4))
    with pytest.warns(UserWarning, match="duplicate"):
        opt = optimizer([p, p], "adam")
    go(opt, 2)
    assert opt.window.dim == 4
    opt.load_state_dict(copied(opt.state_dict()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window_format": "x"}, TypeError, r"`window_format`.*Found 'x'.*in group 0"),
        ({"beta2": torch.tensor([0.5, 0.9])}, ValueError, r"`beta2`.*shape \[2\].*in group 0"),
        ({"lr": torch.tensor(1j)}, TypeError, r"`lr` should be a real number.*in group 0"),
        ({"rank": 10**12}, ValueError, r"`rank` should be at most 65536. Found 1000000000000. It is in group 0"),
        ({"rule": "sgd"}, ValueError, r"`rule`.*Found 'sgd'.*in group 0"),
        ({"eps": 1e-46}, ValueError, r"`eps`.*Found 1e-46.*in group 0"),
    ],
)
def test_what_is_no_option_names_itself_and_the_group(options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        mfac.MFAC([nn.Parameter(torch.ones(3))], **options)


def test_a_beta_in_a_tensor_of_one_element_is_a_number():
    p = nn.Parameter(torch.ones(3))
    go(optimizer([p], "adam", beta2=torch.tensor([0.99])), 2)
    assert bool(torch.isfinite(p).all())


def test_parameters_of_eight_bits_are_refused_by_number():
    parameters = [torch.ones(3), torch.ones(2, dtype=torch.float8_e4m3fn)]
    with pytest.raises(TypeError, match=r"Found torch.float8_e4m3fn as number 1, shape \[2\]. It is in group 0"):
        mfac.MFAC(parameters)


def test_an_option_that_is_gone_is_named():
    p = nn.Parameter(torch.ones(3))
    opt = optimizer([p], "adam")
    go(opt, 1)
    del opt.param_groups[0]["density"]
    with pytest.raises(KeyError, match="should have an entry 'density'"):
        go(opt, 1)


def test_a_bad_option_of_a_state_names_its_group():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    opt = mfac.MFAC([{"params": [p]} for p in parameters])
    state = copied(opt.state_dict())
    state["param_groups"][1]["eps"] = -1.0
    with pytest.raises(ValueError, match=r"`eps`.*in group 1"):
        opt.load_state_dict(state)
