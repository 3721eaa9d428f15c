"""A small residual network on Fashion-MNIST, trained from scratch by MFAC where AdamW stood."""

from __future__ import annotations

import torch
from torch.nn import functional

import mfac
from bench.fashion import load_fashion_mnist
from demo.networks import ResNet8, accuracy


def main() -> None:
    digits = load_fashion_mnist().subset(6000)
    images = digits.train_images, digits.test_images[:2000]
    small, test = (functional.avg_pool2d(x, 2) for x in images)  # 14 x 14 pixels
    torch.manual_seed(0)
    model = ResNet8()
    groups = mfac.group_parameters(model, by="kind")  # matrices, and vectors without weight decay
    for group in groups:
        group["weight_decay"] = 0.01 if group["name"] == "matrices" else 0.0
    opt = mfac.MFAC(groups, window_dtype=torch.bfloat16, decoupled_weight_decay=True)
    epochs, batch_size = 3, 64
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, 0.01, epochs * (6000 // batch_size), cycle_momentum=False)
    for epoch in range(epochs):
        for rows in torch.randperm(6000)[: 6000 // batch_size * batch_size].split(batch_size):
            loss = functional.cross_entropy(model(small[rows]), digits.train_labels[rows])
            opt.zero_grad()
            loss.backward()
            opt.step()
            scheduler.step()
        shown = accuracy(model, test, digits.test_labels[:2000])
        rank = opt.diagnostics()["0/effective_rank"]
        print(f"epoch {epoch + 1}: {shown:.1f} %, the {opt.windows[0].rank} gradients are worth {rank:.1f}")
        model.train()


if __name__ == "__main__":
    main()
