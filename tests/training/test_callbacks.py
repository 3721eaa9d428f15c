"""Masked training inside of the trainers of others, where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac import recipes


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.body(x)
        return {"loss": (y - labels).square().mean(), "logits": y} if labels is not None else {"logits": y}


class Points(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 6, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"x": self.x[number], "labels": self.x[number, :1]}


def zeros_hold(training: mfac.MaskedTraining, model: nn.Module) -> bool:
    named = dict(model.named_parameters())
    return all(not bool(named[key][~mask].any()) for key, mask in training.masks.items())


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer_saves_and_resumes_masks(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def trainer(steps_saved: int) -> tuple[Any, Any]:
        callback = mfac.trainer_callback(lambda steps: recipes.RigL(0.8, end=steps, every=3))
        arguments = transformers.TrainingArguments(
            str(tmp_path / "run"),
            max_steps=20,
            per_device_train_batch_size=8,
            save_steps=steps_saved,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            lr_scheduler_type="constant",
            remove_unused_columns=False,
        )
        return transformers.Trainer(Regression(), arguments, train_dataset=Points(), callbacks=[callback]), callback

    whole, callback = trainer(10)
    whole.train()
    assert callback.training.steps == 20
    assert len(callback.training.changes) == 7
    assert zeros_hold(callback.training, whole.model)
    again, other = trainer(10)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    assert other.training.steps == 20
    assert other.training.masks == callback.training.masks
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_and_resumes_masks(tmp_path: Path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Regression()

        def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
            return self.inner(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    class Save(lightning.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 8:  # an epoch: in its middle Lightning's own data starts anew
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def fitted(checkpoint: str | None = None) -> tuple[Any, Any]:
        callback = mfac.lightning_callback(recipes.RigL(0.8, end=20, every=3))
        trainer = lightning.Trainer(
            max_steps=16,
            callbacks=[callback, *([Save()] if checkpoint is None else [])],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(Points(), batch_size=8), ckpt_path=checkpoint)
        return module, callback

    module, callback = fitted()
    assert callback.training.steps == 16
    assert zeros_hold(callback.training, module)
    resumed, other = fitted(str(tmp_path / "half.ckpt"))
    assert other.training.steps == 16
    assert other.training.masks == callback.training.masks
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), resumed.parameters(), strict=True))


def test_a_missing_trainer_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mfac.training.callbacks.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install transformers"):
        mfac.trainer_callback(recipes.Static(0.5))
    with pytest.raises(ImportError, match="pip install pytorch_lightning"):
        mfac.lightning_callback(recipes.Static(0.5))
