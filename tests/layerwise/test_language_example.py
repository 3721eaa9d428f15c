"""The example of a language model runs, on a small one of `transformers` with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mfac
from examples import language_model

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers

TEXT = "a b c d e f g h . " * 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = sorted(set(TEXT.split()))
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=".").save_pretrained(tmp_path / "dense")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_example_writes_a_model_that_loads_pruned(folder: Path, pattern: str, capsys: pytest.CaptureFixture[str]):
    out = folder / "pruned"
    arguments = [str(folder / "dense"), str(folder / "text.txt"), "--out", str(out), "--length", "32"]
    report = language_model.main([*arguments, "--pattern", pattern])
    assert not report.notes  # blocks ran by themselves
    printed = capsys.readouterr().out
    assert "dense: perplexity" in printed and "pruned: perplexity" in printed
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert len(report.masks) >= 14
    assert mfac.Masks.load(out / "masks.pt") == mfac.Masks(report.masks)
    for name, mask in report.masks.items():
        assert torch.equal(again.get_parameter(name) != 0, mask)
        assert float(mask.float().mean()) == 0.5
