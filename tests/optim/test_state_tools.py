"""Runs of MFAC that torch's distributed checkpoints and trainers store go on bit by bit.

What is not torch is tested where it is installed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim.runs import SOME_KINDS, Bag, Kind, Run, assert_same, copied, give_gradients
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import mfac

BEFORE, AFTER = 7, 5
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
WHOLE = StateDictOptions()


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
@pytest.mark.parametrize("options", [WHOLE, FLAT], ids=["whole", "flat"])
@pytest.mark.parametrize("stepped", [0, 2])
def test_a_run_goes_on_from_torchs_distributed_state(kind: Kind, options: StateDictOptions, stepped: int):
    run = Run(kind).go(0, BEFORE)
    saved = copied(get_optimizer_state_dict(run.model, run.opt, options=options))
    again = Run(kind, seed=1).go(50, stepped)
    again.model.load_state_dict(run.model.state_dict())
    set_optimizer_state_dict(again.model, again.opt, saved, options=options)
    assert_same(run.everything(), again.everything())
    assert_same(run.go(BEFORE, AFTER).everything(), again.go(BEFORE, AFTER).everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
@pytest.mark.parametrize("options", [WHOLE, FLAT], ids=["whole", "flat"])
def test_a_run_goes_on_from_a_folder_of_a_distributed_checkpoint(kind: Kind, options: StateDictOptions, tmp_path: Path):
    run, again = Run(kind).go(0, BEFORE), Run(kind, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: no process group
        model, opt = get_state_dict(run.model, run.opt, options=options)
        dcp.save({"model": model, "opt": opt}, checkpoint_id=tmp_path, no_dist=True)
        model, opt = get_state_dict(again.model, again.opt, options=options)
        dcp.load({"model": model, "opt": opt}, checkpoint_id=tmp_path, no_dist=True)
        set_state_dict(again.model, again.opt, model_state_dict=model, optim_state_dict=opt, options=options)
    assert_same(run.everything(), again.everything())
    assert_same(run.go(BEFORE, AFTER).everything(), again.go(BEFORE, AFTER).everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
@pytest.mark.parametrize("decay", [{"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}])
@pytest.mark.parametrize("groups", [1, 2])
def test_asking_an_unstarted_optimizer_for_its_state_changes_no_step(kind: Kind, decay: dict[str, Any], groups: int):
    run, asked = Run(kind, groups=groups, **decay), Run(kind, groups=groups, **decay)
    before = copied(asked.model.state_dict())
    get_optimizer_state_dict(asked.model, asked.opt)  # takes a step with zero gradients at rate 0
    assert_same(before, copied(asked.model.state_dict()))
    assert all(window.num_filled == 0 and window.ring.pushes == 0 for window in asked.opt.windows)
    assert_same(run.go(0, BEFORE).everything(), asked.go(0, BEFORE).everything())


def test_asking_for_the_state_where_parameters_are_frozen_changes_no_step():
    run, asked = (Run(Kind("paper", rounding="stochastic")) for _ in range(2))
    for each in (run, asked):
        each.model.wide.requires_grad_(False)
        each.model.bias.requires_grad_(False)  # all of a group
    get_optimizer_state_dict(asked.model, asked.opt)
    assert_same(run.go(0, BEFORE).everything(), asked.go(0, BEFORE).everything())


def test_a_step_of_zero_gradients_at_a_rate_that_is_not_zero_is_a_step():
    run = Run(Kind("leave_one_out"), groups=1)
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p)
    run.opt.step()
    assert run.opt.window.num_filled == 1


class Regression(Bag):
    """A bag that a trainer can call: the loss of one batch, and its outputs."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(nn.functional.linear(x, self.wide, self.bias))
        out = nn.functional.linear(hidden, self.last).sum(1) * self.scale + self.narrow.mean()
        return {"loss": (out - x.sum(1)).square().mean(), "logits": out}


def optimizer(model: nn.Module, kind: Kind) -> mfac.MFAC:
    parameters = list(model.parameters())
    return mfac.MFAC([{"params": parameters[:2]}, {"params": parameters[2:], "rank": 3}], **kind.options)


def data(n: int = 48) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(5))


OF_TRAINERS = [Kind("paper", torch.bfloat16), Kind("leave_one_out", torch.int8), Kind("adam", torch.float32, 0.1)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*SOME_KINDS, *OF_TRAINERS], ids=str)
def test_accelerate_stores_and_loads(kind: Kind, tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")

    def prepared(seed: int) -> tuple[Any, Any, Any]:
        accelerator = accelerate.Accelerator(cpu=True)
        model = Bag(kind.weights, seed)
        return accelerator, *accelerator.prepare(model, optimizer(model, kind))

    def go(model: nn.Module, opt: Any, first: int, steps: int) -> None:
        for t in range(first, first + steps):
            give_gradients(model, t)
            opt.step()
            opt.zero_grad()

    accelerator, model, opt = prepared(0)
    go(model, opt, 0, BEFORE)
    accelerator.save_state(str(tmp_path), safe_serialization=False)
    accelerator, other, again = prepared(1)
    accelerator.load_state(str(tmp_path))
    assert_same(copied(opt.state_dict()), copied(again.state_dict()))
    for m, o in ((model, opt), (other, again)):
        go(m, o, BEFORE, AFTER)
    assert_same(copied(opt.state_dict()), copied(again.state_dict()))
    assert_same(copied(model.state_dict()), copied(other.state_dict()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OF_TRAINERS, ids=str)
def test_the_hugging_face_trainer_stores_and_resumes(kind: Kind, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    items = [{"x": x} for x in data()]

    def trained(folder: Path, resume: Path | None = None) -> Any:
        arguments = transformers.TrainingArguments(
            str(folder),
            per_device_train_batch_size=8,
            max_steps=9,
            save_steps=5,
            report_to=[],
            use_cpu=True,
            seed=3,
            disable_tqdm=True,
            logging_steps=50,
        )
        model = Regression(kind.weights)
        opt = optimizer(model, kind)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t))
        trainer = transformers.Trainer(model, arguments, train_dataset=items, optimizers=(opt, schedule))
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model, opt

    model, opt = trained(tmp_path / "once")
    other, again = trained(tmp_path / "again", tmp_path / "once" / "checkpoint-5")
    assert opt.windows[0].ring.pushes == 9
    assert_same(copied(model.state_dict()), copied(other.state_dict()))
    assert_same(copied(opt.state_dict()), copied(again.state_dict()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OF_TRAINERS, ids=str)
def test_lightning_stores_and_resumes(kind: Kind, tmp_path: Path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Regression(kind.weights)

        def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
            return self.net(batch)["loss"]

        def configure_optimizers(self) -> mfac.MFAC:
            return optimizer(self.net, kind)

    def trained(epochs: int, resume: Path | None = None) -> tuple[Any, Any]:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Module()
        loader = torch.utils.data.DataLoader(data(), batch_size=8)
        trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume), weights_only=False)
        if resume is None:
            trainer.save_checkpoint(tmp_path / "stored.ckpt")
        return module, trainer.optimizers[0]

    module, opt = trained(2)
    trained(1)
    other, again = trained(2, tmp_path / "stored.ckpt")
    assert opt.windows[0].ring.pushes == 12
    assert_same(copied(module.state_dict()), copied(other.state_dict()))
    assert_same(copied(opt.state_dict()), copied(again.state_dict()))
