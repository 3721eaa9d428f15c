"""The pruning accuracies that the defaults of `mfac.prune` are held to.

python -m bench.pruning            the digit CNN, one call a sparsity, full MNIST test set
python -m bench.pruning --mlp      a 784-40-20-10 MLP without biases, 15 stages of 1000 per-sample gradients
python -m bench.pruning --seeds 3  each with several orders of the data
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor, nn

import mfac
from demo.digits import load_mnist
from demo.networks import MLP, accuracy, load_pretrained_digit_cnn
from mfac.bench.timing import describe_machine

LEAST = {("cnn", 0.8): 99.0, ("cnn", 0.9): 98.9, ("cnn", 0.95): 98.0, ("mlp", 0.95): 91.3, ("mlp", 0.98): 87.0}
METHODS = {
    "joint (default)": {},
    "summed": {"compensation": "summed"},
    "magnitude": {"saliency": "magnitude", "compensation": "none"},
}


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def shuffled_batches(images: Tensor, labels: Tensor, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [(images[part], labels[part]) for part in order.split(size)]


def train_mlp(images: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
    """A 784-40-20-10 MLP without biases, by five epochs of plain SGD: about 94 %."""
    torch.manual_seed(seed)
    model = MLP(bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(5):
        for batch in shuffled_batches(images, labels, 64, seed + epoch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlp", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    mnist = load_mnist()
    print(describe_machine(), mnist.source, sep="\n")
    train, test = mnist.train_images, mnist.test_images
    if arguments.mlp:
        name, sparsities, settings = "mlp", (0.95, 0.98), {"num_gradients": 1000, "stages": 15, "per_sample": True}
        mean, deviation = train.mean(), train.std()
        train, test = (train - mean) / deviation, (test - mean) / deviation
        dense: nn.Module = train_mlp(train, mnist.train_labels)
    else:
        name, sparsities, settings = "cnn", (0.8, 0.9, 0.95, 0.98), {}
        dense = load_pretrained_digit_cnn()
    print(f"{name}, dense {accuracy(dense, test, mnist.test_labels):.2f} %")
    for sparsity in sparsities:
        for method, extra in METHODS.items():
            found, seconds = [], []
            for seed in range(arguments.seeds):
                model = copy.deepcopy(dense)
                data = shuffled_batches(train, mnist.train_labels, 1000 if arguments.mlp else 16, seed)
                start = time.perf_counter()
                mfac.prune(model, loss_fn, data, sparsity=sparsity, **settings, **extra)
                seconds.append(time.perf_counter() - start)
                found.append(accuracy(model, test, mnist.test_labels))
            least = f"  (at least {LEAST[name, sparsity]})" if not extra and (name, sparsity) in LEAST else ""
            numbers = " ".join(f"{value:.2f}" for value in found)
            print(f"  {sparsity:.0%}  {method:<16} {numbers} %  {min(seconds):.1f} s{least}", flush=True)


if __name__ == "__main__":
    main()
