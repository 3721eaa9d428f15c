"""The list of methods.

A peer is imported when its method is made. A peer that is missing gets a row that says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bench.peers.method import Method


@dataclass(frozen=True)
class Entry:
    """A method by name.

    Attributes:
        module: Module of this package that holds the class.
        kind: The class.
        arguments: What it is made with, besides the network.
        package: The package on PyPI that it needs, or None.
        kfac: Whether it is one of the K-FACs.
        matrix: What its dense matrix is, for the table's notes.
    """

    module: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None
    kfac: bool = False
    matrix: str = ""

    def load(self) -> type[Method]:
        """The class, after importing the peer."""
        return getattr(importlib.import_module(f"bench.peers.{self.module}"), self.kind)

    def make(self, model: nn.Module) -> Method:
        """The method, on this network."""
        return self.load()(model, **self.arguments)


def _mfac(rank: int, dtype: torch.dtype) -> Entry:
    return Entry("first_order", "WindowedMFAC", {"rank": rank, "dtype": dtype}, matrix="window")


def _curvlinops(exact_damping: bool, approximation: str) -> Entry:
    arguments = {"exact_damping": exact_damping, "approximation": approximation}
    matrix = "A ⊗ B + λI" if exact_damping else "damped A ⊗ damped B"
    return Entry("curvlinops_kfac", "CurvlinopsKFAC", arguments, "curvlinops-for-pytorch", kfac=True, matrix=matrix)


def _asdl(swift: bool) -> Entry:
    return Entry("asdl_kfac", "AsdlKFAC", {"swift": swift}, "asdfghjkl", kfac=True, matrix="damped A ⊗ damped B")


def _singd(approximation: str) -> Entry:
    arguments = {"approximation": approximation}
    return Entry("singd_kfac", "SingdKFAC", arguments, "singd", kfac=True, matrix="(KKᵀ)⁻¹ ⊗ (CCᵀ)⁻¹")


def _heavyball(name: str) -> Entry:
    return Entry("heavyball_shampoo", "HeavyballMethod", {"name": name}, "heavyball")


BASELINE = "SGD"

METHODS: Mapping[str, Entry] = {
    BASELINE: Entry("first_order", "PlainSGD"),
    "Adam": Entry("first_order", "PlainAdam"),
    **{
        f"MFAC m={rank} {label}": _mfac(rank, dtype)
        for rank in (32, 128, 512)
        for label, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
    },
    "curvlinops K-FAC exact": _curvlinops(exact_damping=True, approximation="expand"),
    "curvlinops K-FAC": _curvlinops(exact_damping=False, approximation="expand"),
    "curvlinops K-FAC reduce": _curvlinops(exact_damping=False, approximation="reduce"),
    "asdfghjkl K-FAC": _asdl(swift=False),
    "asdfghjkl SKFAC": _asdl(swift=True),
    "nngeometry K-FAC": Entry(
        "nngeometry_kfac", "NNGeometryKFAC", {}, "nngeometry", kfac=True, matrix="damped A ⊗ damped B"
    ),
    "singd": _singd("expand"),
    "singd reduce": _singd("reduce"),
    "heavyball KL-Shampoo": _heavyball("KLShampoo"),
    "heavyball SOAP": _heavyball("SOAP"),
}
"""Every method by the name of its row."""
