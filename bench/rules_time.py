"""What a step of each rule costs, by phase, beside the step of SGD.

    python -m bench.rules_time [--ranks 64 128] [--repeat 30]

A ResNet-20 (272 474 weights), batch 128 of 28 x 28 images, windows in bfloat16, full. Rules are
timed in turn, one step of each after the other, so that a slow moment meets them all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch.nn import functional

import mfac
from mfac.bench.network import ResNet20
from mfac.bench.timing import describe_machine

RULES = ("paper", "leave_one_out", "adam", "spectral")
WANTED = 1.15  # times the paper's rule


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rules_time", description="Step time by rule.")
    parser.add_argument("--ranks", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--repeat", type=int, default=30)
    arguments = parser.parse_args(argv)
    print(describe_machine())
    model = ResNet20()
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))

    def backward() -> None:
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()

    for rank in arguments.ranks:
        optimizers = {"SGD": torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)}
        for rule in RULES:
            options = {"damping": 1e-3, "momentum": 0.9} if rule == "paper" else {}
            opt = mfac.MFAC(model.parameters(), lr=1e-8, rank=rank, window_dtype=torch.bfloat16, rule=rule, **options)
            optimizers[rule] = opt
            backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            for _ in range(rank + 2):
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p.grad = g + 0.5 * g.std() * torch.randn_like(g) if g.numel() > 1 else g.clone()
                opt.step()
        times: dict[str, list[float]] = {name: [] for name in ("forward and backward", *optimizers)}
        for _ in range(arguments.repeat):
            started = time.perf_counter()
            backward()
            times["forward and backward"].append(time.perf_counter() - started)
            for name, opt in optimizers.items():
                started = time.perf_counter()
                opt.step()
                times[name].append(time.perf_counter() - started)
        medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        network = medians.pop("forward and backward")
        print(f"\nrank {rank}: forward and backward {network:.1f} ms")
        print(f"  {'rule':<14} {'step [ms]':>9} {'of the paper':>13} {'whole step of the paper':>24} {'of SGD':>8}")
        for name, step in medians.items():
            ratio, whole = step / medians["paper"], (network + step) / (network + medians["paper"])
            marks = "" if name == "SGD" or ratio <= WANTED else f"   > {WANTED}"
            print(
                f"  {name:<14} {step:9.2f} {ratio:13.2f} {whole:24.2f} "
                f"{(network + step) / (network + medians['SGD']):8.2f}{marks}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
