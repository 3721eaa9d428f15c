"""collect_gradients: values, order, selections, what it leaves alone, and every error."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from models import batches, classifier, conv_classifier, cross_entropy, same_state, snapshot
from torch import nn

import mfac


def backward_gradient(model, batch):
    model.zero_grad()
    cross_entropy(model, batch).backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    model.zero_grad()
    return gradient


def test_rows_are_batch_gradients_in_parameter_order():
    model, data = classifier(), batches(5)
    grads = mfac.collect_gradients(model, cross_entropy, data, num_gradients=5)
    expected = torch.stack([backward_gradient(model, batch) for batch in data])
    # The same additions in the same order, so equal but for the order of threads in the matrix
    # products.
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-7)


def test_per_sample_rows_are_gradients_of_batches_of_one():
    model, data = conv_classifier().eval(), batches(3, shape=(1, 6, 6))
    grads = mfac.collect_gradients(model, cross_entropy, data, num_gradients=20, per_sample=True)
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))][:20]
    expected = mfac.collect_gradients(model, cross_entropy, singles, num_gradients=20)
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-6)  # vmap sums in another order, in float32


def test_per_sample_takes_nested_batches():
    model = classifier()
    data = [{"inputs": [x], "labels": y} for x, y in batches(2)]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch["inputs"][0]), batch["labels"])

    grads = mfac.collect_gradients(model, loss_fn, data, num_gradients=10, per_sample=True)
    expected = mfac.collect_gradients(model, cross_entropy, batches(2), num_gradients=10, per_sample=True)
    assert torch.equal(grads, expected)


def test_float64_model_gives_float64_and_half_gives_float32():
    data = batches(2)
    assert mfac.collect_gradients(classifier(dtype=torch.float64), cross_entropy, data, 2).dtype == torch.float64
    assert mfac.collect_gradients(classifier(dtype=torch.bfloat16), cross_entropy, data, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("params", "width"),
    [
        (["2.bias", "0.weight"], 12 * 32 + 3),
        ("*.bias", 35),
        (lambda name, parameter: parameter.dim() == 2, 12 * 32 + 32 * 3),
    ],
)
def test_selections_keep_named_parameter_order(params, width):
    model, data = classifier(), batches(2)
    grads = mfac.collect_gradients(model, cross_entropy, data, 2, params=params)
    everything = mfac.collect_gradients(model, cross_entropy, data, 2)
    assert grads.shape == (2, width)
    if isinstance(params, list):
        assert torch.equal(grads, torch.cat([everything[:, : 12 * 32], everything[:, -3:]], dim=1))


def test_parameters_themselves_select():
    model, data = classifier(), batches(2)
    by_tensor = mfac.collect_gradients(model, cross_entropy, data, 2, params=[model[2].weight])
    assert torch.equal(by_tensor, mfac.collect_gradients(model, cross_entropy, data, 2, params="2.weight"))


def test_model_is_left_alone():
    model, data = conv_classifier(), batches(4, shape=(1, 6, 6))
    model[0].eval()  # a mix of modes must survive
    backward_gradient(model, data[0])
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = snapshot(model)
    mfac.collect_gradients(model, cross_entropy, data, 4)
    assert same_state(model, before)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))


def test_data_goes_round_only_from_one_collection_to_the_next():
    model, data = classifier(), batches(3)
    with pytest.raises(ValueError, match=r"`data` should yield enough batches for num_gradients=4. Found only 3"):
        mfac.collect_gradients(model, cross_entropy, data, 4)
    with pytest.raises(ValueError, match=r"Found only 3"):
        mfac.collect_gradients(model, cross_entropy, iter(data), 4)
    with pytest.raises(ValueError, match=r"Found only 0"):
        mfac.collect_gradients(model, cross_entropy, [], 1)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda model, batch: model(batch[0]), ValueError, r"`loss_fn` should return a scalar. Found shape \[8, 3\]"),
        (lambda model, batch: 1.0, TypeError, r"`loss_fn` should return a scalar tensor. Found float"),
        (
            lambda model, batch: torch.tensor(1.0),
            ValueError,
            r"`loss_fn` should return a loss that depends on the model",
        ),
        (lambda model, batch: torch.tensor(3), TypeError, r"`loss_fn` .* Found torch.int64"),
        (
            lambda model, batch: model(batch[0]).sum() * float("nan"),
            ValueError,
            r"`loss_fn` should return a finite loss. Found nan",
        ),
        (
            lambda model, batch: model[0](batch[0]).sum(),
            ValueError,
            r"`params` .* Found '2.weight', which got no gradient",
        ),
    ],
)
def test_bad_losses(loss_fn, error, message):
    with pytest.raises(error, match=message):
        mfac.collect_gradients(classifier(), loss_fn, batches(2), 2)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ("3.weight", ValueError, r"`params` should name parameters of the model. Found '3.weight'"),
        (lambda name, parameter: False, ValueError, r"`params` should select at least one parameter"),
        ([torch.ones(2)], ValueError, r"Found a tensor of shape \[2\] that is no parameter"),
        ([3], TypeError, r"`params` should hold names, patterns or parameters. Found int"),
    ],
)
def test_bad_selections(params, error, message):
    with pytest.raises(error, match=message):
        mfac.collect_gradients(classifier(), cross_entropy, batches(2), 2, params=params)


def test_frozen_parameters_are_refused_by_name():
    model = classifier()
    model[0].weight.requires_grad_(False)
    assert mfac.collect_gradients(model, cross_entropy, batches(2), 2).shape == (2, 32 + 32 * 3 + 3)
    with pytest.raises(ValueError, match=r"Found '0.weight', which does not"):
        mfac.collect_gradients(model, cross_entropy, batches(2), 2, params="0.weight")


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(ValueError, match=r"finite gradients. Found a NaN or infinity in gradient 1"):
        mfac.collect_gradients(
            model,
            lambda model, x: (model(x) + x.sign() - 1).abs().sqrt().sum(),
            [-torch.ones(1, 1), torch.ones(1, 1)],
            2,
        )


def test_an_unused_parameter_is_refused_per_sample_too():
    def loss_fn(model, batch):
        return model[0](batch[0]).sum()

    with pytest.raises(ValueError, match=r"Found '2.weight', which got no gradient"):
        mfac.collect_gradients(classifier(), loss_fn, batches(2), 2, per_sample=True)


def test_named_tuples_stay_named():
    Named = namedtuple("Named", "inputs labels")

    def loss_fn(model, batch):
        return cross_entropy(model, (batch.inputs, batch.labels))

    data = [Named(*batch) for batch in batches(2)]
    grads = mfac.collect_gradients(classifier(), loss_fn, data, 12, per_sample=True)
    assert torch.equal(grads, mfac.collect_gradients(classifier(), cross_entropy, batches(2), 12, per_sample=True))


def test_none_is_a_batch_like_any_other():
    model = torch.nn.Linear(2, 1)
    assert mfac.collect_gradients(
        model, lambda model, batch: model.weight.sum(), [None] * 3, 3, params="weight"
    ).shape == (3, 2)


def test_it_computes_on_the_cpu_whatever_the_default_device():
    model, data = classifier(), batches(2)
    expected = mfac.collect_gradients(model, cross_entropy, data, 2)
    with torch.device("meta"):
        found = mfac.collect_gradients(model, cross_entropy, data, 2)
        inverse = mfac.EmpiricalFisher(found, 1e-2, block_size=8).inverse_element(1, 2)
        window = mfac.GradientWindow(3, found.shape[1], 1e-2)
        window.push(found[0])
        step = window.precondition()
    assert torch.equal(found, expected) and inverse.device.type == step.device.type == "cpu"


@pytest.mark.parametrize(("model", "loss_fn", "name"), [(3, cross_entropy, "model"), (classifier(), None, "loss_fn")])
def test_models_and_losses_of_other_types(model, loss_fn, name):
    with pytest.raises(TypeError, match=rf"Parameter `{name}` should be"):
        mfac.collect_gradients(model, loss_fn, batches(1), 1)
    with pytest.raises(TypeError, match=rf"Parameter `{name}` should be"):
        mfac.prune(model, loss_fn, batches(1))


def test_complex_parameters_are_refused():
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(3, dtype=torch.complex64))})
    with pytest.raises(TypeError, match=r"Found 'w' of torch.complex64"):
        mfac.collect_gradients(model, lambda model, batch: model["w"].abs().sum(), [0], 1)


@pytest.mark.parametrize("data", [torch.ones(3), 5])
def test_data_should_be_batches(data):
    with pytest.raises(TypeError, match=r"`data` should be an iterable of batches. Found (Tensor|int)"):
        mfac.collect_gradients(classifier(), cross_entropy, data, 1)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_counts(count, error):
    with pytest.raises(error, match=rf"`num_gradients` .* Found {count}"):
        mfac.collect_gradients(classifier(), cross_entropy, batches(2), count)


def test_per_sample_refuses_batches_without_a_common_first_dimension():
    data = [(torch.ones(4, 12), torch.ones(3, dtype=torch.long))]
    with pytest.raises(ValueError, match=r"share a first dimension.* \[\[4, 12\], \[3\]\]"):
        mfac.collect_gradients(classifier(), cross_entropy, data, 1, per_sample=True)
    with pytest.raises(TypeError, match=r"`data` should yield tensors.* Found str"):
        mfac.collect_gradients(classifier(), cross_entropy, ["text"], 1, per_sample=True)
