"""The table, where a peer wins, and the requirements, from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from bench.peers.measure import Result
from bench.peers.methods import BASELINE, METHODS

INTERVALS = (1, 10, 100)
OURS = "MFAC m=128 bf16"
REQUIRED_RATIO = 20.0  # of the cheapest K-FAC's overhead to ours, at update interval 1

Results = Mapping[str, Mapping[str, Result]]
"""By network and method."""


def overhead(results: Mapping[str, Result], name: str, interval: int) -> float:
    """Seconds that a method adds to a step of SGD."""
    return results[name].added_seconds(results[BASELINE], interval)


def sgd_step(results: Mapping[str, Result]) -> float:
    """Median seconds."""
    return statistics.median(results[BASELINE].plain)


def is_timed(result: Result) -> bool:
    return bool(result.plain) and "step" not in result.reasons


def table(results: Results, errors: Mapping[str, float | str], failures: Mapping[str, str]) -> str:
    """One Markdown table: a row for each network and method."""
    head = [
        *("network", "method", "overhead at interval 1 / 10 / 100 [ms]", "step / SGD step at 1 / 10 / 100"),
        *("IHVP [ms]", "memory [MiB]", "preconditioned [%]", "IHVP error", "remark"),
    ]
    rows = [head, ["---", "---", *["---:"] * 6, "---"]]
    for network, methods in results.items():
        rows += [[network, name, *_cells(methods, name, errors, failures)] for name in methods]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(
    methods: Mapping[str, Result], name: str, errors: Mapping[str, float | str], failures: Mapping[str, str]
) -> list[str]:
    result = methods[name]
    if not is_timed(result):
        installation = failures.get(METHODS[name].package or "", "")
        reason = f"not installed: {installation}" if installation else result.reasons.get("step", "not measured")
        return [*["—"] * 6, reason.replace("|", "\\|")]
    added = [f"{overhead(methods, name, n) * 1e3:.1f}" for n in INTERVALS]
    ratios = [f"{1 + overhead(methods, name, n) / sgd_step(methods):.2f}" for n in INTERVALS]
    error = errors.get(name, "")
    return [
        "—" if name == BASELINE else " / ".join(added),
        " / ".join(ratios),
        f"{statistics.median(result.ihvp) * 1e3:.2f}" if result.ihvp else "—",
        _memory(methods, name),
        f"{100 * result.preconditioned / result.parameters:.1f}",
        f"{error:.1e}" if isinstance(error, float) else "—",
        _remark(result, error),
    ]


def _memory(methods: Mapping[str, Result], name: str) -> str:
    mine, base = methods[name].memory, methods[BASELINE].memory
    return "—" if mine is None or base is None else f"{(mine - base) / 2**20:.0f}"


def _remark(result: Result, error: float | str) -> str:
    remarks = [] if isinstance(error, float) else [error]
    remarks += [reason for reason in result.reasons.values() if reason not in str(error)]
    if result.losses is not None and not result.losses[1] < result.losses[0]:
        remarks.append(f"loss did not fall in the warm-up: {result.losses[0]:.3f}, then {result.losses[1]:.3f}")
    return "; ".join(filter(None, remarks)).replace("|", "\\|")


def matrices() -> str:
    """One line for each kind of dense matrix: what the IHVP error is measured against."""
    kinds: dict[str, list[str]] = {}
    for name, entry in METHODS.items():
        if entry.matrix:
            kinds.setdefault(entry.matrix, []).append(name)
    return "\n".join(f"- {matrix}: {', '.join(names)}" for matrix, names in kinds.items())


def wins(results: Results) -> str:
    """For each network and interval: the peers, but Adam and SGD, with an overhead below `OURS`."""
    lines = []
    for network, methods in results.items():
        if OURS not in methods or not is_timed(methods[OURS]):
            lines.append(f"- {network}: {OURS} was not measured, so nothing can be said.")
            continue
        for interval in INTERVALS:
            mine = overhead(methods, OURS, interval)
            peers = [n for n, result in methods.items() if METHODS[n].package and is_timed(result)]
            cheaper = [n for n in peers if overhead(methods, n, interval) < mine]
            said = ", ".join(f"{n} ({overhead(methods, n, interval) * 1e3:.1f} ms)" for n in cheaper)
            lines.append(
                f"- {network}, interval {interval}: {OURS} adds {mine * 1e3:.1f} ms; cheaper: {said or 'none'}"
            )
    return "\n".join(lines)


def requirements(methods: Mapping[str, Result]) -> str:
    """The two requirements on one network, against every K-FAC, with the ratios."""
    if OURS not in methods or not is_timed(methods[OURS]):
        reason = methods[OURS].reasons.get("step", "") if OURS in methods else "left out"
        return f"Requirements not checked: {OURS} was not measured. {reason}"
    kfacs = [name for name, result in methods.items() if METHODS[name].kfac and is_timed(result)]
    if not kfacs:
        return "Requirements not checked: no K-FAC was measured."
    mine = overhead(methods, OURS, 1)
    whole = statistics.median(methods[OURS].plain) - sgd_step(methods)
    lines = [
        f"{OURS} adds {mine * 1e3:.1f} ms after the backward pass. The medians of whole steps differ by"
        f" {whole * 1e3:.1f} ms; their standard deviation for SGD is"
        f" {statistics.stdev(methods[BASELINE].plain) * 1e3:.0f} ms."
    ]
    for name in kfacs:
        ratios = [f"{overhead(methods, name, n) / mine:.1f} x at {n}" for n in INTERVALS]
        lines.append(f"- {name}: {', '.join(ratios)}")
    ratio = min(overhead(methods, name, 1) for name in kfacs) / mine
    at_ten = min(overhead(methods, name, 10) for name in kfacs)
    share = 100 * methods[OURS].preconditioned / methods[OURS].parameters
    lines += [
        f"- At least {REQUIRED_RATIO:.0f} x less than every K-FAC at interval 1: {_verdict(ratio >= REQUIRED_RATIO)},"
        f" {ratio:.1f} x the least.",
        f"- No more than the cheapest K-FAC at interval 10: {_verdict(mine <= at_ten)}, {mine * 1e3:.1f} ms"
        f" against {at_ten * 1e3:.1f} ms.",
        f"- All parameters preconditioned: {_verdict(share == 100)}, {share:.0f} %.",
    ]
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return "met" if met else "NOT met"
