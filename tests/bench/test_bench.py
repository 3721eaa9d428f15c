"""`python -m mfac.bench` prints a line for every measurement, and never hides a ratio."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mfac
from mfac.bench.measurement import Measurement
from mfac.bench.network import ResNet20, network_gradients
from mfac.bench.sweep import Point, Series, pyplot
from mfac.bench.wanted import ratios, table

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
    *((op, "float32") for op in ("gram", "factor", "factor + diagonal", "ihvp", "factor + diagonal, noise")),
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
    assert text.index("ResNet-20") < text.index("\ngram ") < text.index("\npush + precondition ")  # the network leads
    found = text.split("Ratios wanted, at shapes smaller")[1].splitlines()
    assert sum("=" in line and "not measured" not in line for line in found) == 10


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


def test_instruction_sets_stand_side_by_side_in_one_table():
    isas = mfac.build_info()["isas_built"]
    isas = isas[: isas.index(mfac.build_info()["isa_chosen"]) + 1][:2]
    text = bench("--quick", "--wanted", "--rank", "4", "--dim", "300", "--ops", "blocks", "--isa", *isas)
    header = next(line for line in text.splitlines() if line.startswith("ratio "))
    assert header.split()[1:] == isas
    row = next(line for line in text.splitlines() if line.startswith("paper / block Fisher"))
    assert row.count("(>= 10)") == len(isas)
    assert "push + precondition " not in text  # the table alone


def test_an_instruction_set_that_was_not_built_is_refused():
    command = [sys.executable, "-m", "mfac.bench", "--isa", "sse9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Found sse9." in done.stderr


def test_gradients_of_a_network_do_without_a_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MFAC_CACHE", str(tmp_path))
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    found = network_gradients(3, width=2, steps=1)
    assert found.rows.shape[0] == 3 and bool(found.rows.isfinite().all()) and float(found.rows.norm()) > 0
    assert "random patterns" in found.source
    assert sum(p.numel() for p in ResNet20().parameters()) == 269_434


def test_a_ratio_that_is_missed_says_so():
    line = Measurement("capacitance_replace_", 8, 16, "float64", 1.0, 1.0, 1.0, plain=14.9)
    (text,) = (text for text in table({"avx2": ratios([line], None, "avx2")}) if "Cholesky" in text)
    assert "MISSED by 1 %" in text and "14.90 (>= 15)" in text


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
