"""`python -m mfac.bench` prints a line for every measurement, and never hides a ratio."""

import importlib
import subprocess
import sys

import pytest

from mfac.bench.measurement import Measurement
from mfac.bench.sweep import Point, Series, pyplot
from mfac.bench.wanted import wanted

pytestmark = pytest.mark.cpu_only("python -m mfac.bench measures the CPU")

FORMATS = ("float32", "bfloat16", "float16", "int8", "top-k 1%")
LINES = {
    *(
        (op, dtype)
        for op in ("push + precondition", "window_dot", "window_combine_", "window_descend_")
        for dtype in FORMATS
    ),
    *((op, "float64") for op in ("capacitance_replace_", "the same, out of cache", "capacitance_solve")),
    ("factored anew, 1/m of it", "float64"),
    *((f"window_dot, {count} vectors", "float32") for count in (1, 4, 16)),
    *((op, "float32") for op in ("gram", "factor", "factor + diagonal", "ihvp")),
    *((op, "float32") for op in ("block_factor", "block_ihvp", "block_inverse_diagonal", "block Fisher, all three")),
    *(("obs_saliency", dtype) for dtype in ("float32", "float64")),
    *((f"nm_mask {pattern}, Linear", "float64") for pattern in ("2:4", "4:8", "16:32")),
    *((f"nm_mask {pattern}, conv", "float64") for pattern in ("2:4", "4:8", "16:32")),
}


GPU_LINES = {
    *(
        (f"{kind}_{op}", dtype)
        for kind, dtype in (("window", "float32"), ("window", "bfloat16"), ("window", "int8"), ("topk", "top-k 1%"))
        for op in ("dot", "combine_", "descend_", "push_")
    ),
    *(("push + precondition", dtype) for dtype in ("float32", "bfloat16", "int8", "top-k 1%")),
    *((op, "float64") for op in ("capacitance_replace_", "capacitance_solve")),
    *((op, "float32") for op in ("whitened_norms", "block_factor", "block_inverse_diagonal", "obs_saliency")),
    *((f"nm_mask 2:4, {layer}", "float64") for layer in ("Linear", "conv")),
}


def bench(*arguments: str, module: str = "mfac.bench") -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_measurement_has_its_line():
    text = bench("--quick", "--rank", "16", "--dim", "3000")
    for op, dtype in LINES:
        assert any(line.startswith(f"{op} ") and f" {dtype} " in line for line in text.splitlines()), (op, dtype)
    assert "streaming read" in text and "GEMM float64" in text
    ratios = text.split("Ratios wanted")[1].splitlines()
    assert sum(line.endswith("not judged") for line in ratios) == 10


def test_every_measurement_of_a_gpu_has_its_line_where_there_is_none():
    lines = bench("--device", "cpu", "--quick", module="bench.gpu").splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("op ")) + 1 :]
    assert len(table) == len(GPU_LINES)
    for op, dtype in GPU_LINES:
        (line,) = (line for line in table if line.startswith(f"{op} ") and f" {dtype} " in line)
        assert line.count(" x") == 1 + (op == "push + precondition")
        assert "GB/s" in line and " % " in line


def test_ops_not_asked_for_are_said_to_be_missing():
    text = bench("--quick", "--rank", "4", "--dim", "300", "--ops", "capacitance")
    assert "capacitance_replace_" in text and "block_factor" not in text
    assert text.count("not measured") == 9


def test_a_ratio_that_is_missed_says_so():
    line = Measurement("capacitance_replace_", 8, 16, "float64", 1.0, 1.0, 1.0, plain=14.9)
    texts = wanted([line], None)
    assert [text.split()[-2:] for text in texts if "Cholesky" in text] == [["NOT", "met"]]


def test_exponents_are_fitted_on_logarithms():
    series = Series("m", [Point(rank, 100, 3.0 * rank**2) for rank in (8, 16, 32, 64, 128)])
    assert series.exponent() == pytest.approx(2)
    assert "d = 100" in str(series)


def test_missing_matplotlib_names_the_command(monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        pyplot()
