"""A pruned network takes its zeros to another task: all weights fine-tuned, or a head alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

import mfac
from bench.fashion import load_fashion_mnist
from demo.digits import load_mnist
from demo.networks import accuracy, load_pretrained_digit_cnn
from mfac import recipes

SPARSITY, STEPS, BATCH = 0.9, 300, 64


def train(model: nn.Module, parameters: list[Tensor], images: Tensor, labels: Tensor, rate: float) -> None:
    """Plain SGD with the learning rate divided by ten twice, on a network or a head."""
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STEPS // 2, STEPS * 3 // 4])
    masks = mfac.Masks.from_zeros(model)
    recipe = recipes.Static()
    sparse = masks.sparsity > 0.01  # a head has no zeros to keep
    training = mfac.MaskedTraining(model, optimizer, recipe, masks=masks) if sparse else None
    for step in range(STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        scheduler.step()
    if training is not None:
        assert training.masks == masks
        training.remove()


def with_new_head(model: nn.Module) -> nn.Module:
    """A copy whose last layer starts anew, and dense."""
    torch.manual_seed(0)
    found = copy.deepcopy(model)
    name, last = [(n, m) for n, m in found.named_modules() if isinstance(m, nn.Linear)][-1]
    parent = found.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Linear(last.in_features, 10))
    return found


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """What goes into the last layer."""
    seen: list[Tensor] = []
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        for piece in images.split(500):
            model.eval()(piece)
    handle.remove()
    return torch.cat(seen)


def main() -> None:
    digits, clothes = load_mnist(), load_fashion_mnist().subset(6000)
    test = clothes.test_images[:2000], clothes.test_labels[:2000]
    dense = load_pretrained_digit_cnn()
    pruned = copy.deepcopy(dense)
    data = list(zip(digits.train_images[:4096].split(64), digits.train_labels[:4096].split(64), strict=True))
    mfac.prune(pruned, cross_entropy, data, sparsity=SPARSITY, num_gradients=64, stages=2)
    for name, network in (("dense", dense), (f"{SPARSITY:.0%} zero", pruned)):
        full = with_new_head(network).train()
        train(full, list(full.parameters()), clothes.train_images, clothes.train_labels, 0.01)
        inputs = features_of(network, clothes.train_images), features_of(network, test[0])
        head = nn.Linear(inputs[0].shape[1], 10)
        train(head, list(head.parameters()), inputs[0], clothes.train_labels, 0.01)
        kept = accuracy(full, *test), accuracy(head, inputs[1], test[1])
        print(f"{name}: {kept[0]:.1f} % of clothes, fine-tuned; {kept[1]:.1f} % with a new head alone")


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss on digits."""
    return functional.cross_entropy(model(batch[0]), batch[1])


if __name__ == "__main__":
    main()
