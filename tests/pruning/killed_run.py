"""A staged run with a checkpoint, for a test to kill: `python killed_run.py FOLDER RESULT`."""

import sys

import torch
from models import cross_entropy, trained_classifier
from torch.utils.data import DataLoader, TensorDataset

import mfac

SETTINGS = {"sparsity": 0.9, "num_gradients": 24, "stages": 12, "recomputations": 2, "seed": 3}


def data() -> DataLoader:
    """Shuffled by torch's own generator, so that a pass is another one each time."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8 * 40, 12, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8, shuffle=True)


def main(folder: str, result: str) -> None:
    torch.set_num_threads(1)
    model = trained_classifier(hidden=64)
    print("begins", flush=True)
    report = mfac.prune(model, cross_entropy, data(), checkpoint=folder or None, **SETTINGS)
    torch.save({"masks": report.masks, "weights": model.state_dict(), "steps": len(report.steps)}, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
