"""What is pruned of any network, what is left dense and why; names, modes and losses of users."""

from __future__ import annotations

import copy

import pytest
import torch
from models import batches, classifier, cross_entropy, deep, recurrent, same_state, snapshot
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import mfac

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2, "sparsity": 0.5}


def pruned(model: nn.Module, loss_fn=cross_entropy, data=None, **arguments) -> mfac.PruningReport:
    report = mfac.prune(model, loss_fn, batches(30) if data is None else data, **{**SMALL, **arguments})
    for name, mask in report.masks.items():
        if name not in report.left_dense:
            assert torch.equal(mfac.gradients.naming.parameter_named(model, name) != 0, mask)
    return report


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 3, -1)
        x = nn.functional.pad(x, (0, 4))
        other = x[..., : self.attention.kdim]
        return self.head(self.attention(x, other, other)[0].mean(1))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Attention(), {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}),
        (
            Attention(kdim=4, vdim=4),
            {
                *(f"attention.{name}_proj_weight" for name in "qkv"),
                *("attention.out_proj.weight", "head.weight"),
            },
        ),
        (recurrent(nn.GRU), {"body.weight_ih_l0", "body.weight_hh_l0", "head.weight"}),
        (
            recurrent(nn.LSTM, bidirectional=True, num_layers=2),
            {
                *(f"body.weight_{kind}_l{layer}{way}" for kind in ("ih", "hh") for layer in (0, 1)
                  for way in ("", "_reverse")),
                "head.weight",
            },
        ),
    ],
    ids=["packed attention", "separate projections", "GRU", "LSTM"],
)  # fmt: skip
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_weights_of_every_kind_of_layer(model: nn.Module, names: set[str], pattern: str):
    model = copy.deepcopy(model)
    arguments = {"pattern": pattern, "sparsity": None if pattern == "2:4" else 0.5}
    report = pruned(model, **arguments)
    # The reverse direction's last hidden state sees one step only, of which hh gets no gradient at
    # the last position.
    missing = names - set(report.masks)
    assert missing <= {name for name, why in report.left_dense.items() if "gets no gradient" in why}
    assert set(report.masks) <= names
    if pattern == "2:4":
        for name in report.masks:
            weight = model.get_parameter(name)
            whole = weight[:, : weight.shape[1] // 4 * 4]
            assert int((whole.reshape(-1, 4) != 0).sum(1).max()) <= 2


def test_a_frozen_layer_is_left_alone_unless_it_is_named():
    model = deep()
    model[0].requires_grad_(False)
    report = pruned(model)
    assert list(report.masks) == ["2.weight", "4.weight"]
    assert report.left_dense == {"0.weight": "is frozen: requires_grad is False"}
    assert "0.weight  left dense: it is frozen" in str(report)
    assert list(pruned(deep_frozen(), params=["*.weight"]).masks) == ["2.weight", "4.weight"]
    with pytest.raises(ValueError, match=r"Found '0.weight': it is frozen: requires_grad is False"):
        pruned(deep_frozen(), params=["0.weight", "2.weight"])


def deep_frozen() -> nn.Sequential:
    model = deep()
    model[0].requires_grad_(False)
    return model


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pooler, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def test_a_layer_without_a_gradient_is_left_dense_and_the_sparsity_is_that_of_the_rest():
    model = Unused()
    before = model.pooler.weight.detach().clone()
    report = pruned(model)
    assert set(report.masks) == {"body.weight", "head.weight"} and report.sparsity == 0.5
    assert report.left_dense["pooler.weight"].startswith("gets no gradient")
    assert torch.equal(model.pooler.weight, before)


class Experts(nn.Module):
    """Two experts, of which the second never sees a token: its gradient is zero, not missing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(12, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.zeros(len(x), 2, 1)
        gate[:, 0] = 1
        return (gate * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)


def test_an_expert_without_tokens_is_left_dense():
    report = pruned(Experts())
    assert list(report.masks) == ["experts.0.weight"] and report.sparsity == 0.5
    assert "gets no gradient" in report.left_dense["experts.1.weight"]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(self.table(tokens))))


def next_token(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


TOKENS = [torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(i)) for i in range(30)]


def test_embeddings_and_what_is_tied_to_them_are_pruned_only_when_named():
    report = pruned(Language(), next_token, TOKENS)
    assert list(report.masks) == ["body.weight"]
    assert "embedding 'table'" in report.left_dense["table.weight"]
    model = Language()
    assert list(pruned(model, next_token, TOKENS, params="table.weight").masks) == ["table.weight"]
    assert torch.equal(model.out.weight, model.table.weight)


def test_two_parameters_of_one_memory_are_one_weight():
    model, tied = deep(), deep()
    tied[2].weight.data = tied[2].weight.detach().clone()
    twice = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    twice[2].weight.data = twice[0].weight.data
    once = copy.deepcopy(twice)
    once[2].weight = once[0].weight
    reports = [pruned(twice), pruned(once)]
    assert [list(report.masks) for report in reports] == [["0.weight", "4.weight"]] * 2
    # The same gradients, summed in another order.
    agree = (reports[0].masks["0.weight"] == reports[1].masks["0.weight"]).double().mean()
    assert float(agree) > 0.97 and torch.equal(twice[0].weight, twice[2].weight)
    assert model is not tied


def test_a_branch_that_starts_at_zero_stays_whole():
    def net() -> nn.Module:
        model = deep()
        nn.init.zeros_(model[2].weight)
        model[2] = Residual(model[2])
        return model

    report = pruned(net())
    assert bool(report.masks["2.inner.weight"].all()) and report.sparsity == 0.5
    assert "is zero throughout" in report.left_dense["2.inner.weight"]
    assert not bool(pruned(net(), existing_zeros="keep").masks["2.inner.weight"].any())
    ignored = mfac.prune(net(), cross_entropy, batches(30), existing_zeros="ignore", **SMALL)
    assert "2.inner.weight" not in ignored.left_dense and ignored.sparsity == 0.5


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: nn.utils.weight_norm(layer),
    ],
    ids=["weight_norm", "spectral_norm", "the old weight_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_computed_weights_are_refused_by_name(make):
    model = deep(make(nn.Linear(16, 16)))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"Found '2.weight', which is computed .* Call torch.nn.utils.*'2'.*before"):
        pruned(model)
    with pytest.raises(ValueError, match=r"Found '2.weight', which is computed"):
        pruned(model, params=["2.weight"])
    assert same_state(model, before)
    assert list(pruned(model, params=["0.weight", "4.weight"]).masks) == ["0.weight", "4.weight"]


def test_torch_pruning_is_taken_over():
    model = deep()
    torch_prune.random_unstructured(model[2], "weight", amount=0.25)
    before = model[2].weight_mask.bool().clone()
    report = mfac.prune(model, cross_entropy, batches(30), **{**SMALL, "sparsity": 0.8})
    mask = report.masks["2.weight_orig"]
    assert not bool((mask & ~before).any()) and report.sparsity == pytest.approx(0.8, abs=1e-3)
    assert torch.equal(model[2].weight_mask.bool(), mask)
    model(torch.zeros(1, 12))
    assert torch.equal(model[2].weight != 0, mask)
    torch_prune.remove(model[2], "weight")
    assert torch.equal(model[2].weight != 0, mask)
    named = deep()
    torch_prune.random_unstructured(named[2], "weight", amount=0.25)
    assert list(pruned(named, params="2.weight").masks) == ["2.weight_orig"]


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["DataParallel", "compile"]
)
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf:UserWarning")
def test_names_are_those_of_the_model_inside(wrap):
    model = deep()
    report = pruned(wrap(model))
    assert list(report.masks) == ["0.weight", "2.weight", "4.weight"]
    report.apply_(model)
    inner = nn.Sequential(nn.Linear(12, 12), wrap(nn.Sequential(nn.Linear(12, 12))), nn.Linear(12, 3))
    assert list(pruned(inner).masks) == ["0.weight", "1.0.weight", "2.weight"]


def test_a_bad_batch_is_named_by_its_number():
    data = batches(30)
    data[7] = (data[7][0], torch.full((8,), -100))
    with pytest.raises(ValueError, match=r"`loss_fn` should return a finite loss. Found nan in batch 7 of the data"):
        pruned(classifier(), data=data)


def test_frozen_batch_normalisation_keeps_its_statistics():
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    for freeze in (lambda layer: layer.eval(), lambda layer: layer.requires_grad_(False)):
        model = net()
        freeze(model[1])
        pruned(model)
        assert int(model[1].num_batches_tracked) == 0
    model = net().eval()
    pruned(model)
    assert int(model[1].num_batches_tracked) == 30


def test_memory_is_asked_for_beforehand():
    model = nn.Linear(4096, 4096)
    with pytest.raises(MemoryError, match=r"`num_gradients` should be at most about \d+ here: 100000 gradients of 167"):
        mfac.prune(model, cross_entropy, batches(1), sparsity=0.5, num_gradients=100_000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_kept_weight_that_rounds_to_zero_stays_a_kept_weight(dtype: torch.dtype):
    parameter = nn.Parameter(torch.ones(3, dtype=dtype))
    vector = mfac.gradients.vector.ParameterVector({"w": parameter})
    vector.write_(torch.tensor([0.0, -1e-43, 1.0]))
    assert (parameter != 0).tolist() == [False, True, True] and float(parameter[1].detach()) < 0


def test_transformers_conv1d_is_known_by_name_and_shape():
    class Conv1D(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
            self.bias = nn.Parameter(torch.zeros(outputs))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    model = deep(Conv1D(16, 16))
    report = pruned(model, pattern="2:4", sparsity=None)
    assert bool((report.masks["2.weight"].view(4, 4, 16).sum(1) == 2).all())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize(
    ("normed", "part"),
    [
        (nn.utils.parametrizations.weight_norm, "0.parametrizations.weight.original1"),
        (nn.utils.weight_norm, "0.weight_v"),
    ],
)
def test_what_a_weight_is_computed_from_is_not_pruned(normed, part: str):
    model = nn.Sequential(normed(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=rf"Found '{part}': it is what '0.weight' is computed from"):
        pruned(model, params=[part])
    report = pruned(model, params=["*weight*"])
    assert list(report.masks) == ["2.weight"]
    assert report.left_dense[part] == "is what '0.weight' is computed from"


@pytest.mark.parametrize("more", [{}, {"compensation": "joint", "step_check": True}])
def test_a_loss_that_is_not_finite_where_steps_are_compared_is_an_error(more: dict[str, object]):
    model, before = classifier(), snapshot(classifier())
    good = batches(24)
    bad = [*good[:8], *((torch.full_like(x, torch.nan), y) for x, y in good[8:16]), *good[16:]]
    with pytest.raises(ValueError, match=r"finite loss. Found nan in batch 8 of the data"):
        mfac.prune(model, cross_entropy, bad, sparsity=0.5, num_gradients=8, stages=1, **more)
    assert same_state(model, before)


@pytest.mark.parametrize("params", [3, nn.Linear(2, 2)])
def test_a_selection_of_another_type_is_refused(params):
    with pytest.raises(TypeError, match="`params` should be None, names"):
        mfac.prune(classifier(), cross_entropy, batches(8), params=params)
    with pytest.raises(TypeError, match="`model` should be a module or a list of Attention"):
        mfac.Heads(3)
