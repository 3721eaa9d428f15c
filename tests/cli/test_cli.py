"""The command line prunes, writes, goes on, verifies and reports; an error is one line."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mfac
from mfac.cli.arguments import parser
from mfac.cli.main import main
from mfac.cli.prune import prune_options
from mfac.pruning import pruner

MODEL = """
import torch

def factory():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))

def squared(model, batch):
    return model(batch[0]).square().mean()

text = "no model"
"""
DATA = """
import torch

def loader():
    generator = torch.Generator().manual_seed(1)
    return [(x := torch.randn(8, 12, generator=generator), x[:, :3].argmax(1)) for _ in range(30)]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "digits.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


PRUNE = ["prune", "net.py:factory", "digits.py:loader", "--num-gradients", "24", "--stages", "2"]


def test_a_model_is_pruned_verified_and_reported(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*PRUNE, "--sparsity", "0.8", "--compact"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("plan: 480 weights in 2 tensors")
    assert "sparsity 0.8000: 96 of 480 weights kept" in out
    folder = place / "pruned"
    assert f"model_compact.pt: {(folder / 'model_compact.pt').stat().st_size} bytes" in out

    state = torch.load(folder / "model.pt", weights_only=True)
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    masks = mfac.Masks.load(next(folder.glob("masks.*")))
    assert masks == {name: state[name] != 0 for name in masks}
    assert mfac.PruningReport.from_json(folder / "report.json", masks).sparsity == pytest.approx(0.8)

    assert main(["verify", "pruned", "net.py:factory"]) == 0
    assert "holds: the sparsity is 0.800000" in capsys.readouterr().out
    assert main(["report", "pruned"]) == 0
    assert "96 of 480 weights kept" in capsys.readouterr().out

    state["0.weight"][:] = 1.0
    torch.save(state, folder / "model.pt")
    assert main(["verify", "pruned", "net.py:factory"]) == 1
    assert "mfac: ValueError: Weights that were dropped should be zero" in capsys.readouterr().err


def test_the_plot(place: Path):
    pytest.importorskip("matplotlib")
    assert main([*PRUNE, "--sparsity", "0.5", "--out", "a"]) == 0
    assert main(["report", "a", "--plot"]) == 0
    assert (place / "a" / "report.png").exists()
    assert main(["report", "a", "--plot", "b.svg"]) == 0
    assert (place / "b.svg").exists()


def test_a_run_is_kept_and_taken_up(place: Path, capsys: pytest.CaptureFixture[str]):
    run = [*PRUNE, "--sparsity", "0.8", "--out", "a", "--checkpoint", "runs"]
    assert main([*run, "--resume"]) == 1
    assert "Parameter `--resume` should find a run. Found none in 'runs'" in capsys.readouterr().err
    assert main(run) == 0
    first = torch.load("a/model.pt", weights_only=True)
    assert main([*run, "--overwrite"]) == 1
    assert "should be a folder without a run, or come with --resume" in capsys.readouterr().err
    assert main([*run, "--overwrite", "--resume"]) == 0
    again = torch.load("a/model.pt", weights_only=True)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_is_asked_for_is_done(place: Path, capsys: pytest.CaptureFixture[str]):
    choices = ["--pattern", "2:4", "--params", "0.weight", "--loss", "net.py:squared", "--saliency", "magnitude"]
    assert main([*PRUNE, *choices, "--compensation", "none", "--plan"]) == 0, capsys.readouterr().err
    assert "2.weight  left dense: it was not selected" in capsys.readouterr().out
    assert not (place / "pruned").exists()
    assert main([*PRUNE, *choices, "--compensation", "none"]) == 0
    model = torch.load("pruned/model.pt", weights_only=True)
    assert int((model["0.weight"] != 0).view(32, 3, 4).sum(2).max()) == 2
    assert bool((model["2.weight"] != 0).all())


def test_options_of_the_fisher_reach_the_run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    seen = {}

    @functools.wraps(mfac.prune)
    def prune(model, loss_fn, data, **options):
        seen.update(options)
        return mfac.prune(model, loss_fn, data, **options)

    monkeypatch.setattr(pruner, "prune", prune)
    base = ["prune", "net.py:factory", "digits.py:loader", "--sparsity", "0.5", "--overwrite"]
    assert main([*base, "--damping", "relative:0.01", "--block-size", "32", "--effort", "fast", "--per-sample"]) == 0
    assert seen["damping"] == mfac.relative(0.01)
    assert (seen["block_size"], seen["effort"], seen["per_sample"]) == (32, "fast", True)
    seen.clear()
    assert main([*base, "--damping", "1e-4", "--time-budget", "3", "--gradients", "./store"]) == 0
    assert (seen["damping"], seen["time_budget"], seen["gradients"]) == (1e-4, 3.0, "./store")
    assert (place / "store").is_dir() and "per_sample" not in seen and "effort" not in seen
    seen.clear()
    assert main([*base, "--damping", "auto", "--num-gradients", "16", "--stages", "1"]) == 0
    assert seen["damping"] == "auto"
    assert "damping" not in parsed_options()


def parsed_options() -> dict[str, object]:
    given = parser(print, print, print).parse_args(["prune", "m", "d"])
    return prune_options(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PRUNE, "--damping", "small"], "`--damping` should be a number, relative:C or auto. Found 'small'"),
        ([*PRUNE, "--damping", "absolute:3"], "`--damping` should be a number, relative:C or auto"),
        ([*PRUNE, "--damping", "-1"], "Parameter `damping` should be finite and > 0"),
        ([*PRUNE, "--damping", "relative:0"], "Parameter `scale` should be finite and > 0"),
        ([*PRUNE, "--effort", "fats"], "Found 'fats'. Did you mean 'fast'?"),
        ([*PRUNE, "--gradients", "net.py"], "`gradients` should be 'ram', 'bf16' or a folder. Found 'net.py'"),
        (["prune", "net.py", "digits.py:loader"], "`model` should be file.py:name or package.module:name"),
        (["prune", "none.py:f", "digits.py:loader"], "`model` should be in a file. Found none at"),
        (["prune", "no_such_module:f", "digits.py:loader"], "`model` should be in a module. Found no module"),
        (["prune", "net.py:nothing", "digits.py:loader"], "Found no 'nothing' there"),
        (["prune", "net.py:text", "digits.py:loader"], "`model` should name a torch.nn.Module"),
        (["prune", "net.py:factory", "net.py:text"], "`data` should name batches or what makes them. Found a str"),
        ([*PRUNE, "--sparsity", "2"], "Parameter `sparsity` should be"),
        ([*PRUNE, "--resume"], "`--resume` should come with --checkpoint DIR"),
        (["verify", "nowhere", "net.py:factory"], "should hold what `mfac prune --out DIR` wrote"),
        (["report", "nowhere"], "should hold what `mfac prune --out DIR` wrote"),
    ],
)
def test_errors_are_a_line(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (place / "pruned" / "model.pt").exists()
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        main(["--traceback", *arguments])


def test_earlier_results_stay(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "pruned").mkdir()
    (place / "pruned" / "model.pt").write_text("mine")
    assert main([*PRUNE, "--sparsity", "0.5"]) == 1
    assert "come with --overwrite. Found ['model.pt'] in 'pruned'" in capsys.readouterr().err
    assert (place / "pruned" / "model.pt").read_text() == "mine"


def test_it_is_a_program():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mfac", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert {"prune", "verify", "report"} <= set(done.stdout.replace(",", " ").split())
