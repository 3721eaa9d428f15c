"""A pruning report as JSON, and back."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfac.masks.packing import pack_bits, unpack_bits
from mfac.pruning.measurement import Measurement
from mfac.pruning.report_data import PruningStep, ReportData

FORMAT = "mfac.report"


def report_to_json(report: ReportData, with_masks: bool) -> str:
    """The text of a report.

    Args:
        report: The report.
        with_masks: Whether masks are in it: for each its shape, and its bits compressed by zlib, in
            base 64.

    Returns:
        JSON. What follows from the masks, as kept weights by layer, is there to be read and not
        read back.
    """
    layers: dict[str, Any] = {
        name: {"shape": list(mask.shape), "kept": int(mask.sum()), "total": mask.numel(), "sparsity": share}
        for (name, mask), share in zip(report.masks.items(), report.sparsity_by_parameter.values(), strict=True)
    }
    content: dict[str, Any] = {
        "format": FORMAT,
        "sparsity": report.sparsity,
        "predicted_increase": report.predicted_increase,
        "seconds": report.seconds,
        "pattern": report.pattern,
        "layers": layers,
        "left_dense": report.left_dense,
        "dense_zeros": report.dense_zeros,
        "kept_zeros": report.kept_zeros,
        "broken_units": report.broken_units,
        "steps": [dataclasses.asdict(step) for step in report.steps],
        "refits": report.refits,
        "measured": None if report.measured is None else dataclasses.asdict(report.measured),
    }
    if with_masks:
        content["masks"] = {
            name: {"shape": list(mask.shape), "bits": _encoded(pack_bits(mask))} for name, mask in report.masks.items()
        }
    return json.dumps(content, indent=1)


def report_fields(text: str, masks: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The fields of the report that `report_to_json` wrote.

    Args:
        text: JSON.
        masks: Where the text has none.

    Returns:
        By name.

    Raises:
        ValueError: If it is no such text, or there are no masks.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Parameter `source` should be a report as JSON. Found text that is none: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"Parameter `source` should be a report as JSON, of format {FORMAT!r}. Found something else.")
    if masks is None:
        if "masks" not in content:
            raise ValueError("Parameter `masks` should be given: the report was written without its masks. Found None.")
        masks = {name: unpack_bits(_decoded(one["bits"]), one["shape"]) for name, one in content["masks"].items()}
    measured = content["measured"]
    return dict(
        masks=dict(masks),
        steps=[PruningStep(**step) for step in content["steps"]],
        refits=content.get("refits", []),
        left_dense=content["left_dense"],
        pattern=content["pattern"],
        dense_zeros=content["dense_zeros"],
        kept_zeros=content.get("kept_zeros", {}),
        broken_units=content.get("broken_units", {}),
        measured=None if measured is None else Measurement(**measured),
    )


def _encoded(bits: Tensor) -> str:
    return base64.b64encode(zlib.compress(bits.numpy().tobytes())).decode("ascii")


def _decoded(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).copy())
