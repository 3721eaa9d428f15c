"""The CUDA part is built where its toolkit can be used; elsewhere one line says why it is not."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("setuptools", reason="what builds mfac is not here")
pytest.importorskip("pybind11", reason="what builds mfac is not here")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, where no variable is set, torch is a CPU build and PATH is empty."""
    spec = importlib.util.spec_from_file_location("mfac_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("MFAC_CUDA", "MFAC_CUDA_ARCHITECTURES", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.version, "cuda", None)
    return module


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit that only a script on PATH leads to."""
    home = tmp_path / "cuda"
    program(home / "bin" / "nvcc", f'echo "#\\$ _SPACE_= " >&2\necho "#\\$ TOP={home}/bin/.." >&2')
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    program(tmp_path / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    return home


def test_a_toolkit_alone_is_left_out_in_one_line(build, toolkit, capsys):
    assert build.find_cuda_toolkit() is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "MFAC_CUDA=1" in said and str(toolkit) in said


def test_it_is_used_where_architectures_are_named(build, toolkit, monkeypatch, capsys):
    monkeypatch.setenv("MFAC_CUDA_ARCHITECTURES", "80")
    assert build.find_cuda_toolkit() == toolkit
    assert not capsys.readouterr().out


def test_it_is_used_where_torch_is_a_cuda_build(build, toolkit, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert build.find_cuda_toolkit() == toolkit


@pytest.mark.parametrize(
    ("printed", "capabilities"),
    [("9.0\\n8.6\\n9.0", ["86", "90"]), ("NVIDIA-SMI has failed", []), ("No devices were found", [])],
)
def test_it_is_used_where_a_gpu_is_listed(build, toolkit, tmp_path, printed: str, capabilities: list[str]):
    program(tmp_path / "bin" / "nvidia-smi", f'printf "{printed}\\n"')
    assert build.present_capabilities() == capabilities
    assert build.find_cuda_toolkit() == (toolkit if capabilities else None)


def test_it_is_used_where_it_is_asked_for(build, toolkit, monkeypatch):
    monkeypatch.setenv("MFAC_CUDA", "1")
    assert build.find_cuda_toolkit() == toolkit
    monkeypatch.setenv("MFAC_CUDA", "0")
    assert build.find_cuda_toolkit() is None


def test_a_folder_that_is_named_comes_first(build, toolkit, tmp_path, monkeypatch):
    other = tmp_path / "other"
    program(other / "bin" / "nvcc", "")
    (other / "include").mkdir()
    (other / "include" / "cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(other))
    monkeypatch.setenv("MFAC_CUDA", "1")
    assert build.find_cuda_toolkit() == other


def test_what_is_missing_or_misspelt_is_said(build, monkeypatch):
    monkeypatch.setattr(build, "is_toolkit", lambda folder: False)
    monkeypatch.setenv("MFAC_CUDA", "1")
    with pytest.raises(SystemExit, match="Set CUDA_HOME"):
        build.find_cuda_toolkit()
    monkeypatch.setenv("MFAC_CUDA", "yes")
    with pytest.raises(SystemExit, match="Found 'yes'"):
        build.find_cuda_toolkit()
    monkeypatch.delenv("MFAC_CUDA")
    assert build.find_cuda_toolkit() is None


@pytest.mark.parametrize("strict", [False, True])
def test_warnings_of_nvcc_stop_ci_alone(build, tmp_path, monkeypatch, capfd, strict: bool):
    home = tmp_path / "cuda"
    program(home / "bin" / "nvcc", 'echo "a.cu(1): warning #177-D: unused" >&2\nfor last; do :; done; : > "$last"')
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "WARNINGS_ARE_ERRORS", strict)
    if strict:
        with pytest.raises(SystemExit, match="warning #177"):
            build.compile_cuda(home, "csrc/a.cu", ["80"])
        assert not (tmp_path / "build" / "cuda" / "a.o").exists()
    else:
        assert Path(build.compile_cuda(home, "csrc/a.cu", ["80"])).exists()
        assert "warning #177" in capfd.readouterr().out


def test_every_folder_of_the_package_is_in_the_wheel():
    root = Path(__file__).parents[2]
    folders = {".".join(path.parent.relative_to(root).parts) for path in (root / "mfac").rglob("*.py")}
    listed = (root / "pyproject.toml").read_text().split("packages = [", 1)[1].split("]", 1)[0]
    assert set(re.findall(r'"([\w.]+)"', listed)) == folders
