"""How well a language model predicts: its perplexity dense and after magnitude pruning.

`python -m bench.language`; the texts are those of `demo/sequences.py`.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

import mfac
from demo.sequences import calibration, evaluation
from demo.smollm import SmolLM, load_smollm


def prune_magnitude_(layers: nn.Module, sparsity: float = 0.5) -> None:
    """Sets the smallest weights of each Linear to zero, the share `sparsity` of each."""
    with torch.no_grad():
        for layer in layers.modules():
            if isinstance(layer, nn.Linear):
                magnitudes = layer.weight.abs()
                count = int(sparsity * magnitudes.numel())
                if count:
                    layer.weight[magnitudes <= magnitudes.flatten().kthvalue(count).values] = 0


def perplexities(model: nn.Module, texts: dict[str, list[Tensor]]) -> dict[str, float]:
    return {kind: mfac.evaluate_perplexity(model, batches) for kind, batches in texts.items()}


def main() -> None:
    torch.set_num_threads(2)
    model, tokenizer = load_smollm()
    texts, calibrating = evaluation(tokenizer), calibration(tokenizer)
    begin = time.perf_counter()
    with torch.no_grad():
        for batch in calibrating:
            model.model(batch)
    print(f"{sum(map(len, calibrating))} calibration sequences: {time.perf_counter() - begin:.1f} s without the head")
    pruned: SmolLM = copy.deepcopy(model)
    prune_magnitude_(pruned.model.layers)
    for name, each in (("dense", model), ("magnitude, 50 %", pruned)):
        begin = time.perf_counter()
        found = perplexities(each, texts)
        print(f"{name}: {found['news']:.2f} news, {found['wiki']:.2f} wiki, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
