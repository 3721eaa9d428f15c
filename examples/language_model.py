"""A causal language model of `transformers`, from a folder of your own, pruned layer by layer.

`python -m examples.language_model FOLDER TEXT --out PRUNED`. The last tenth of the text is what the
model is evaluated on. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import mfac


def main(argv: Sequence[str] | None = None) -> mfac.LayerwiseReport:
    parser = argparse.ArgumentParser(prog="python -m examples.language_model", description=__doc__)
    parser.add_argument("folder", type=Path, help="what save_pretrained wrote, with the tokenizer")
    parser.add_argument("text", type=Path, help="a file of text, to calibrate and to evaluate on")
    parser.add_argument("--out", type=Path, required=True, help="the folder that the pruned model is written to")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", default="unstructured", help="or 2:4 and the like")
    parser.add_argument("--method", default="alps")
    parser.add_argument("--sequences", type=int, default=128, help="to calibrate on, at most")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    arguments = parser.parse_args(argv)

    model, tokenizer = load(arguments.folder)
    calibrating, evaluated = split(tokenizer, arguments.text.read_text(encoding="utf-8"), arguments.length)
    print(f"dense: perplexity {mfac.evaluate_perplexity(model, evaluated):.2f}")
    report = mfac.prune_layerwise(
        model,
        calibrating[: arguments.sequences],
        sparsity=arguments.sparsity,
        pattern=arguments.pattern,
        method=arguments.method,
        progress=lambda name, done, total: print(f"  {name}: {done} of {total}", flush=True),
    )
    print(report)
    print(f"pruned: perplexity {mfac.evaluate_perplexity(model, evaluated):.2f}")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    mfac.Masks(report.masks).save(arguments.out / "masks.pt")
    return report


def load(folder: Path) -> tuple[nn.Module, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: pip install transformers")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def split(tokenizer: Any, text: str, length: int) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Batches of one sequence each: of the first nine tenths of the text, and of the last."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    sequences = ids[: len(ids) // length * length].view(-1, 1, length)
    if len(sequences) < 2:
        sys.exit(f"The text should have at least {2 * length} tokens, two sequences. Found {len(ids)}.")
    batches = [{"input_ids": sequence} for sequence in sequences]
    held_out = max(1, len(batches) // 10)
    return batches[:-held_out], batches[-held_out:]


if __name__ == "__main__":
    main()
