"""A pruning report as text: a line in all, a table by layer, what was left dense and why."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from mfac.pruning.measurement import Measurement
from mfac.pruning.report_data import ReportData


def report_text(report: ReportData) -> str:
    """The text of a report.

    Args:
        report: The report.

    Returns:
        Lines.
    """
    pruned = {name: mask for name, mask in report.masks.items() if name not in report.left_dense}
    kept = {name: int(mask.sum()) for name, mask in pruned.items()}
    total = sum(mask.numel() for mask in pruned.values())
    increase = "" if report.predicted_increase is None else f", predicted increase {report.predicted_increase:.3g}"
    lines = [
        f"sparsity {report.sparsity:.4f}: {sum(kept.values())} of {total} weights kept in {len(report.steps)} steps, "
        f"{report.seconds:.1f} s{increase}{f', pattern {report.pattern}' if report.pattern else ''}"
    ]
    scales = [step.scale for step in report.steps if step.scale is not None]
    if scales:
        lines.append(f"  step-size check: updates scaled by {_joined(scales)}")
    if report.refits:
        count = f"{len(report.refits)} refit{'' if len(report.refits) == 1 else 's'}"
        lines.append(f"  {count} after the last stage, scaled by {_joined(report.refits)}")
    if report.measured is not None:
        lines += _measured_lines(report.measured, list(pruned))
    width = max(map(len, [*report.masks, *report.left_dense]), default=0)
    for name, mask in pruned.items():
        cells = [f"{1 - kept[name] / max(1, mask.numel()):.4f}", f"{kept[name]} of {mask.numel()}"]
        if report.measured is not None:
            cells += _measured_cells(report.measured, name)
        lines.append(f"  {name:<{width}}  " + "  ".join(cells))
    lines += [f"  {name:<{width}}  left dense: it {why}" for name, why in report.left_dense.items()]
    return "\n".join(lines)


def _joined(scales: Sequence[float]) -> str:
    """Numbers in order, repeated ones once with their count: 1 (3 times), 0.5."""
    runs = [(scale, sum(1 for _ in run)) for scale, run in groupby(scales)]
    return ", ".join(f"{scale:g}" if count == 1 else f"{scale:g} ({count} times)" for scale, count in runs)


def _measured_lines(measured: Measurement, names: Sequence[str]) -> list[str]:
    dense, compact = (sum(d.get(n, 0) for n in names) for d in (measured.dense_bytes, measured.compact_bytes))
    lines = [f"  bytes of these weights: {dense} dense, {compact} compact"]
    if measured.dense_flops:
        every, sparse = (sum(d.get(n, 0) for n in names) for d in (measured.dense_flops, measured.sparse_flops))
        lines.append(f"  operations of one pass: {every} dense, {sparse} with kept weights")
    for what, unit, before, after in (
        ("loss", "", measured.loss_before, measured.loss_after),
        ("time of a batch", " s", measured.seconds_before, measured.seconds_after),
    ):
        if after is not None:
            was = "" if before is None else f"{before:.4g}{unit} before, "
            lines.append(f"  {what}: {was}{after:.4g}{unit} {'after' if before is not None else 'pruned'}")
    return lines


def _measured_cells(measured: Measurement, name: str) -> list[str]:
    cells = []
    if name in measured.dense_bytes:
        cells.append(f"{measured.compact_bytes[name]} of {measured.dense_bytes[name]} bytes")
    if measured.dense_flops:
        found = name in measured.dense_flops
        cells.append(
            f"{measured.sparse_flops[name]} of {measured.dense_flops[name]} operations"
            if found
            else "operations not seen"
        )
    return cells
