"""The tables of bench.sparse_training, with what is wanted beside what was found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

Measured = Mapping[str, Mapping[str, float]]


def report(table: str, results: Measured) -> None:
    """Prints mean and spread of every method, and each comparison that is wanted."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for key, found in results.items():
        name, sparsity, _ = key.removeprefix(f"{table}/").rsplit("/", 2)  # "AC/DC" has a slash of its own
        for what, value in found.items():
            if what != "seconds":
                values.setdefault((name, sparsity, what), []).append(value)
    print(f"\n{table}: accuracy in %, mean and spread over seeds")
    for (name, sparsity, what), found in values.items():
        if what == "accuracy":
            others = "  ".join(
                f"{other} {statistics.fmean(numbers):.2f}"
                for (n, s, other), numbers in values.items()
                if (n, s) == (name, sparsity) and other not in ("accuracy", "sparsity")
            )
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            print(f"  {name:<18} {sparsity:<5} {statistics.fmean(found):6.2f} ± {spread:.2f} ({len(found)})  {others}")
    means = {key: statistics.fmean(found) for key, found in values.items()}
    for text, better, worse, margin in {"fashion": _FASHION, "paragraphs": _PARAGRAPHS}[table]:
        if better in means and worse in means:
            gained = means[better] - means[worse]
            print(f"  {'met   ' if gained >= margin else 'MISSED'} {text}: {gained:+.2f}, wanted {margin:+g}")
    if table == "fashion":
        _one_shot(means)


def _at(name: str, sparsity: str = "0.9", what: str = "accuracy") -> tuple[str, str, str]:
    return name, sparsity, what


_FASHION = [
    *(
        (f"AC/DC over GMP* at {share}", _at("AC/DC", share), _at("GMP*", share), -0.2)
        for share in ("0.8", "0.9", "0.95")
    ),
    *(
        (f"AC/DC's dense twin at {share} over dense SGD", _at("AC/DC", share, "twin"), _at("dense", "0"), -0.3)
        for share in ("0.8", "0.9", "0.95")
    ),
    ("RigL over SET", _at("RigL"), _at("SET"), 0),
    ("SET over static random", _at("SET"), _at("static"), 0),
    ("SNFS over static random, uniform", _at("SNFS"), _at("static, uniform"), 0),
    ("DSR over static random, uniform", _at("DSR"), _at("static, uniform"), 0),
    ("SNFS over static random, ERK", _at("SNFS"), _at("static"), 0),
    ("DSR over static random, ERK", _at("DSR"), _at("static"), 0),
    *((f"GMP* over GMP at {share}", _at("GMP*", share), _at("GMP", share), 0) for share in ("0.8", "0.9", "0.95")),
    ("OBS over magnitude, SGD", _at("GMP*, OBS"), _at("GMP*"), 0),
    ("OBS of the live window over magnitude, MFAC", _at("MFAC, GMP*, OBS"), _at("MFAC, GMP*"), 0),
    ("CrAM+ dense over dense SGD", _at("CrAM+", "0"), _at("dense", "0"), -0.3),
]
_PARAGRAPHS = [
    ("GMP* over GMP", _at("GMP*"), _at("GMP"), 1.0),
    ("OBS over magnitude", _at("GMP*, OBS"), _at("GMP*"), 0),
]


def _one_shot(means: Mapping[tuple[str, str, str], float]) -> None:
    """What one-shot pruning costs CrAM+'s network and SGD's."""
    for share, most in (("0.8", 1 / 3), ("0.9", 1.0)):
        keys = [(name, "0", what) for name in ("CrAM+", "dense") for what in ("accuracy", f"one-shot {share}")]
        if all(key in means for key in keys):
            cram, plain = means[keys[0]] - means[keys[1]], means[keys[2]] - means[keys[3]]
            met = cram <= most and cram < plain / 2
            print(
                f"  {'met   ' if met else 'MISSED'} one shot to {share}: CrAM+ loses {cram:.2f}, SGD {plain:.2f}; "
                f"wanted at most {most:.2f} and less than half of SGD's"
            )
