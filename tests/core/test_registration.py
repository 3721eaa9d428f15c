"""Every operator as torch sees it: schema, fake implementation, refusal of unsafe arguments."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from samplers import normal, strided, window
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import mfac.core.ops  # ruff: ignore[unused-import]  registers the operators

F32, F64 = torch.float32, torch.float64
RANK, DIM, COUNT, BLOCK = 5, 33, 2, 8
SHIFT = 0.5


def arguments(block_size: int = BLOCK) -> dict[str, tuple[Any, ...]]:
    """One set of valid arguments for each operator."""
    G = window(RANK, DIM, dtype=F32)
    gram = G.double() @ G.double().T
    inverse = torch.linalg.inv(gram + SHIFT * torch.eye(RANK, dtype=F64)).contiguous()
    factors, _ = torch.ops.mfac.block_factor(G, block_size, 0.1, RANK)
    values = normal(RANK, -(-DIM // BLOCK), 2, dtype=F32)
    indices = torch.tensor([0, 0], dtype=torch.uint16).expand(values.shape).contiguous()
    boundaries = torch.zeros(values.shape[1], 0, RANK, dtype=torch.uint16)  # blocks of one tile have none
    vectors, coefficients = normal(COUNT, DIM), normal(COUNT, RANK)
    eye, mask = torch.eye(DIM, dtype=F64), vectors > 0
    return {
        "squared_norms": (strided(G),),
        "gram": (G,),
        "window_dot": (G, vectors),
        "window_combine_": (strided(vectors.float()), G, coefficients, 0.5, 2.0),
        "window_descend_": (
            [normal(4, dtype=F32), normal(3, 2, dtype=F32)],
            *(normal(DIM, dtype=F32), G, normal(1, RANK), 2.0, 0.5),
            *([3, 9], [0.1, 0.2], [1.0, 0.9]),
        ),
        "whitened_norms": (G, inverse, True),
        "topk_dot": (values, indices, vectors, BLOCK),
        "topk_combine_": (vectors.float(), values, indices, coefficients, 0.5, 2.0, BLOCK, boundaries),
        "topk_descend_": (
            [normal(4, dtype=F32), normal(3, 2, dtype=F32)],
            *(normal(DIM, dtype=F32), values, indices, normal(1, RANK), 2.0, 0.5, 1),
            *([3, 9], [0.1, 0.2], [1.0, 0.9], DIM, BLOCK),
        ),
        "topk_push_": (values.clone(), indices.clone(), G[0].clone(), 2, G[1].clone(), BLOCK, boundaries.clone()),
        "prefer_huge_pages_": (G.clone(),),
        "window_push_": (strided(G), 2, vectors[0].float().contiguous()),
        "capacitance_solve": (inverse, gram, coefficients, SHIFT),
        "capacitance_replace_": (inverse, gram, 2, gram[1].clone(), SHIFT),
        "block_factor": (G, block_size, 0.1, float(RANK)),
        "block_ihvp": (G, factors, vectors, block_size, 0.1, float(RANK)),
        "block_matvec": (G, vectors, block_size, 0.1, float(RANK)),
        "obs_saliency": (G[0].clone(), vectors[0].abs() + 1),
        "nm_mask": (normal(COUNT, DIM, 3, dtype=F32), 2, 4),
        "block_inverse_diagonal": (G, factors, block_size, 0.1, float(RANK)),
        "obs_sweep_": (
            *(strided(vectors), vectors.clone(), strided(eye), mask.clone(), 2, 4),
            *(torch.ones(COUNT, dtype=F64), torch.zeros(COUNT, dtype=F64), 15),
        ),
        "obs_eliminate": (
            *(strided(vectors), strided(eye), mask, min(block_size, DIM), 2, 4),
            *(vectors.abs() + 1, vectors.round(), 15),
        ),
        "restricted_solve": (strided(eye), strided(vectors), mask),
    }


NAMES = sorted(arguments())


def operator(name: str) -> Any:
    return getattr(torch.ops.mfac, name).default


def test_every_operator_of_the_schemas_is_tested_here():
    schemas = Path(__file__).parents[2] / "csrc" / "schemas.cpp"
    defined = re.findall(r'"(\w+)\(', schemas.read_text())
    assert sorted(defined) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str):
    results = torch.library.opcheck(operator(name), arguments()[name])
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["topk_combine_", "topk_push_"])
def test_opcheck_of_boundaries(name: str):
    values, indices = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3, dtype=torch.uint16)
    boundaries = torch.zeros(2, 1, 2, dtype=torch.uint16)
    for given in (None, boundaries):
        if name == "topk_push_":
            arguments = (values, indices, torch.zeros(3000), 1, normal(3000, dtype=F32), 1500, given)
        else:
            arguments = (torch.zeros(1, 3000), values, indices, normal(1, 2), 0.5, 2.0, 1500, given)
        assert set(torch.library.opcheck(operator(name), arguments).values()) == {"SUCCESS"}


def shapes_of(results: Any) -> list[tuple[torch.Size, torch.dtype, tuple[int, ...]]]:
    tensors = results if isinstance(results, tuple) else () if results is None else (results,)
    return [(t.shape, t.dtype, t.stride()) for t in tensors]


@pytest.mark.parametrize("block_size", [1, 5, 8, 33, 100])
def test_fake_results_are_shaped_like_real_ones(block_size: int):
    for name, given in arguments(block_size).items():
        with FakeTensorMode() as mode:
            fake = shapes_of(operator(name)(*tree_map_only(torch.Tensor, mode.from_tensor, given)))
        assert fake == shapes_of(operator(name)(*given)), name


def replaced(name: str, position: int, value: Any) -> tuple[Any, ...]:
    given = list(arguments()[name])
    given[position] = value(given[position]) if callable(value) else value
    return tuple(given)


def narrower(t: torch.Tensor) -> torch.Tensor:
    return t[..., :-1].contiguous()


def half(t: torch.Tensor) -> torch.Tensor:
    return t.half()


def flat(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(-1)


def spread(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t], dim=-1)[..., 0]  # the last stride is 2


# operator, position of the argument, what is done to it, what the message says
REFUSED = [
    ("gram", 0, flat, "gram: Parameter `window` should be a matrix. Found Float of shape [165] and strides [1]."),
    ("gram", 0, half, "gram: Parameter `window` should be float32 or float64. Found Half of shape [5, 33]"),
    ("gram", 0, spread, "gram: Parameter `window` should have contiguous rows."),
    ("window_dot", 0, torch.Tensor.int, "Parameter `window` should be float32, float64, bfloat16, float16 or int8."),
    ("window_dot", 0, torch.Tensor.char, "window_dot: Parameter `scales` should be given for an int8 window"),
    (
        "whitened_norms",
        0,
        torch.Tensor.double,
        "Parameter `single` should be False for a float64 window.",
    ),
    ("whitened_norms", 1, narrower, "whitened_norms: Parameter `inverse_factor` should have size 5. Found 4."),
    ("whitened_norms", 1, torch.Tensor.float, "whitened_norms: Parameter `inverse_factor` should be float64."),
    ("prefer_huge_pages_", 0, torch.Tensor.t, "prefer_huge_pages_: Parameter `memory` should be contiguous."),
    ("window_push_", 1, RANK, "window_push_: Parameter `row` should be in [0, 5). Found 5."),
    ("window_push_", 1, -1, "window_push_: Parameter `row` should be in [0, 5). Found -1."),
    ("window_push_", 2, narrower, "window_push_: Parameter `gradient` should have size 33. Found 32."),
    ("window_push_", 2, half, "window_push_: Parameter `gradient` should be float32 or float64."),
    ("window_push_", 0, torch.Tensor.char, "window_push_: Parameter `scales` should be given for an int8 window"),
    ("topk_dot", 1, torch.Tensor.int, "topk_dot: Parameter `indices` should be uint16."),
    ("topk_dot", 2, narrower, "topk_dot: Parameter `values` should have size 4. Found 5."),
    ("topk_dot", 3, 0, "topk_dot: Parameter `block_size` should be in [1, 65536]. Found 0."),
    ("topk_combine_", 3, narrower, "topk_combine_: Parameter `coefficients` should have size 5. Found 4."),
    (
        "topk_push_",
        2,
        torch.Tensor.double,
        "topk_push_: Parameter `error` should be contiguous and of the gradient's dtype.",
    ),
    ("topk_combine_", 7, narrower, "topk_combine_: Parameter `boundaries` should have size 5. Found 4."),
    ("topk_push_", 6, torch.Tensor.short, "topk_push_: Parameter `boundaries` should be contiguous and uint16."),
    ("topk_push_", 6, flat, "topk_push_: Parameter `boundaries` should have 3 dimensions. Found UInt16 of shape [0]"),
    ("topk_push_", 3, RANK, "topk_push_: Parameter `row` should be in [0, 5). Found 5."),
    ("window_dot", 1, half, "window_dot: Parameter `vectors` should be float32 or float64."),
    ("window_dot", 1, flat, "window_dot: Parameter `vectors` should be a matrix. Found Double of shape [66]"),
    ("window_dot", 1, narrower, "window_dot: Parameter `vectors` should have size 33. Found 32."),
    ("window_dot", 1, spread, "window_dot: Parameter `vectors` should have contiguous rows."),
    ("window_combine_", 0, half, "window_combine_: Parameter `out` should be float32 or float64."),
    ("window_combine_", 0, narrower, "window_combine_: Parameter `out` should have size 33. Found 32."),
    ("window_combine_", 0, flat, "window_combine_: Parameter `out` should be a matrix. Found Float of shape [66]"),
    ("window_combine_", 1, spread, "window_combine_: Parameter `window` should have contiguous rows."),
    ("window_combine_", 2, torch.Tensor.float, "window_combine_: Parameter `coefficients` should be float64."),
    ("window_combine_", 2, narrower, "window_combine_: Parameter `coefficients` should have size 5. Found 4."),
    ("window_combine_", 2, spread, "window_combine_: Parameter `coefficients` should be contiguous."),
    ("topk_descend_", 0, [], "topk_descend_: Parameter `parameters` should hold a tensor. Found none."),
    ("topk_descend_", 1, narrower, "topk_descend_: Parameter `average` should have size 33. Found 32."),
    ("topk_descend_", 3, torch.Tensor.int, "topk_descend_: Parameter `indices` should be uint16."),
    ("topk_descend_", 4, narrower, "topk_descend_: Parameter `coefficients` should have size 5. Found 4."),
    ("topk_descend_", 7, RANK, "topk_descend_: Parameter `newest` should be in [0, 5). Found 5."),
    ("topk_descend_", 8, [3, 28], "within the 33 of the window. Found 28 for number 1."),
    ("topk_descend_", 11, 41, "topk_descend_: Parameter `values` should have size 6. Found 5."),
    ("window_descend_", 0, [], "window_descend_: Parameter `parameters` should hold a tensor. Found none."),
    (
        "window_descend_",
        0,
        lambda ps: [half(p) for p in ps],
        "Parameter `parameters` should be contiguous, all float32",
    ),
    ("window_descend_", 0, lambda ps: [ps[0], ps[1].double()], "should be contiguous, all float32 or all float64."),
    ("window_descend_", 0, lambda ps: [ps[0], ps[1].t()], "should be contiguous, all float32 or all float64."),
    ("window_descend_", 1, narrower, "window_descend_: Parameter `average` should have size 33. Found 32."),
    (
        "window_descend_",
        1,
        torch.Tensor.double,
        "Parameter `average` should be contiguous and of the parameters' dtype.",
    ),
    ("window_descend_", 2, spread, "window_descend_: Parameter `window` should have contiguous rows."),
    ("window_descend_", 2, torch.Tensor.char, "window_descend_: Parameter `scales` should be given for an int8 window"),
    ("window_descend_", 3, narrower, "window_descend_: Parameter `coefficients` should have size 5. Found 4."),
    ("window_descend_", 3, torch.Tensor.float, "window_descend_: Parameter `coefficients` should be float64."),
    ("window_descend_", 6, [3, 6], "Parameter `columns` should give every parameter columns of its own, ascending"),
    ("window_descend_", 6, [3, 28], "within the 33 of the window. Found 28 for number 1."),
    ("window_descend_", 6, [-1, 28], "within the 33 of the window. Found -1 for number 0."),
    ("window_descend_", 6, [3], "window_descend_: Parameter `columns` should have size 2. Found 1."),
    ("window_descend_", 7, [0.1], "window_descend_: Parameter `rates` should have size 2. Found 1."),
    ("window_descend_", 8, [], "window_descend_: Parameter `decays` should have size 2. Found 0."),
    ("capacitance_solve", 0, torch.Tensor.float, "capacitance_solve: Parameter `inverse` should be float64."),
    ("capacitance_solve", 0, narrower, "capacitance_solve: Parameter `inverse` should be square."),
    ("capacitance_solve", 1, narrower, "capacitance_solve: Parameter `gram` should be square."),
    ("capacitance_solve", 2, narrower, "capacitance_solve: Parameter `vectors` should have size 5. Found 4."),
    ("capacitance_solve", 2, spread, "capacitance_solve: Parameter `vectors` should be contiguous."),
    ("capacitance_replace_", 0, narrower, "capacitance_replace_: Parameter `inverse` should be square."),
    ("capacitance_replace_", 0, torch.Tensor.float, "capacitance_replace_: Parameter `inverse` should be float64."),
    ("capacitance_replace_", 1, lambda t: t[:4, :4].contiguous(), "Parameter `gram` should have size 5. Found 4."),
    ("capacitance_replace_", 2, -1, "capacitance_replace_: Parameter `row` should be in [0, 5). Found -1."),
    ("capacitance_replace_", 2, 5, "capacitance_replace_: Parameter `row` should be in [0, 5). Found 5."),
    ("capacitance_replace_", 3, narrower, "capacitance_replace_: Parameter `products` should have size 5. Found 4."),
    ("obs_saliency", 0, half, "obs_saliency: Parameter `weights` should be float32 or float64."),
    ("obs_saliency", 0, spread, "obs_saliency: Parameter `weights` should be a contiguous vector."),
    ("obs_saliency", 0, lambda t: t[None], "obs_saliency: Parameter `weights` should be a contiguous vector."),
    ("obs_saliency", 1, half, "obs_saliency: Parameter `inverse_diagonal` should be float32 or float64."),
    ("obs_saliency", 1, spread, "obs_saliency: Parameter `inverse_diagonal` should be a contiguous vector."),
    ("obs_saliency", 1, narrower, "obs_saliency: Parameter `inverse_diagonal` should have size 33. Found 32."),
    ("nm_mask", 0, half, "nm_mask: Parameter `scores` should be float32 or float64."),
    ("nm_mask", 0, spread, "nm_mask: Parameter `scores` should be contiguous and have 3 dimensions: outer, axis"),
    ("nm_mask", 0, flat, "nm_mask: Parameter `scores` should be contiguous and have 3 dimensions: outer, axis, inner."),
    ("nm_mask", 1, -1, "nm_mask: Parameter `keep` should be in [0, 4]. Found -1."),
    ("nm_mask", 1, 5, "nm_mask: Parameter `keep` should be in [0, 4]. Found 5."),
    ("nm_mask", 2, 0, "nm_mask: Parameter `group` should be in [1, 64]. Found 0."),
    ("nm_mask", 2, 65, "nm_mask: Parameter `group` should be in [1, 64]. Found 65."),
    ("block_factor", 0, half, "block_factor: Parameter `window` should be float32 or float64."),
    ("block_factor", 1, 0, "block_factor: Parameter `block_size` should be >= 1. Found 0."),
    ("block_ihvp", 1, narrower, "block_ihvp: Parameter `factors` should have size 5. Found 4."),
    ("block_ihvp", 1, flat, "block_ihvp: Parameter `factors` should have 3 dimensions. Found"),
    ("block_ihvp", 1, torch.Tensor.float, "block_ihvp: Parameter `factors` should be float64."),
    ("block_ihvp", 2, torch.Tensor.float, "block_ihvp: Parameter `vectors` should be float64."),
    ("block_ihvp", 2, narrower, "block_ihvp: Parameter `vectors` should have size 33. Found 32."),
    ("block_ihvp", 2, flat, "block_ihvp: Parameter `vectors` should be a matrix."),
    ("block_matvec", 1, narrower, "block_matvec: Parameter `vectors` should have size 33. Found 32."),
    ("block_matvec", 1, spread, "block_matvec: Parameter `vectors` should be contiguous."),
    (
        "block_inverse_diagonal",
        1,
        narrower,
        "block_inverse_diagonal: Parameter `factors` should have size 5. Found 4.",
    ),
    ("block_inverse_diagonal", 2, 0, "block_inverse_diagonal: Parameter `block_size` should be >= 1. Found 0."),
    ("obs_sweep_", 0, torch.Tensor.float, "obs_sweep_: Parameter `weight` should be float64. Found Float of shape"),
    ("obs_sweep_", 0, flat, "obs_sweep_: Parameter `weight` should be a matrix. Found Double of shape [66]"),
    ("obs_sweep_", 0, spread, "obs_sweep_: Parameter `weight` should have contiguous rows."),
    ("obs_sweep_", 1, narrower, "obs_sweep_: Parameter `carried` should have size 33. Found 32."),
    ("obs_sweep_", 1, torch.Tensor.float, "obs_sweep_: Parameter `carried` should be float64."),
    ("obs_sweep_", 2, narrower, "obs_sweep_: Parameter `factor` should have size 33. Found 32."),
    ("obs_sweep_", 2, spread, "obs_sweep_: Parameter `factor` should have contiguous rows."),
    ("obs_sweep_", 3, torch.Tensor.double, "obs_sweep_: Parameter `kept` should be bool. Found Double"),
    ("obs_sweep_", 3, narrower, "obs_sweep_: Parameter `kept` should have size 33. Found 32."),
    ("obs_sweep_", 4, -1, "obs_sweep_: Parameter `keep` should be >= 0. Found -1."),
    ("obs_sweep_", 4, 5, "obs_sweep_: Parameter `keep` should be in [0, 4]. Found 5."),
    ("obs_sweep_", 5, 65, "obs_sweep_: Parameter `group` should be in [1, 64]. Found 65."),
    ("obs_sweep_", 6, narrower, "obs_sweep_: Parameter `scales` should have size 2. Found 1."),
    ("obs_sweep_", 6, None, "obs_sweep_: Parameter `zeros` should be given with `scales`, and only with them."),
    ("obs_sweep_", 7, None, "only with them. Found scales without zeros."),
    ("obs_sweep_", 7, torch.Tensor.float, "obs_sweep_: Parameter `zeros` should be float64."),
    ("obs_sweep_", 8, 0, "obs_sweep_: Parameter `levels` should be >= 1 where there are scales. Found 0."),
    ("obs_eliminate", 0, torch.Tensor.float, "obs_eliminate: Parameter `weight` should be float64."),
    ("obs_eliminate", 0, spread, "obs_eliminate: Parameter `weight` should have contiguous rows."),
    ("obs_eliminate", 1, narrower, "obs_eliminate: Parameter `inverse` should have size 33. Found 32."),
    ("obs_eliminate", 1, flat, "obs_eliminate: Parameter `inverse` should be a matrix."),
    ("obs_eliminate", 2, torch.Tensor.double, "obs_eliminate: Parameter `dropped` should be bool."),
    ("obs_eliminate", 2, narrower, "obs_eliminate: Parameter `dropped` should have size 33. Found 32."),
    ("obs_eliminate", 3, DIM + 1, "obs_eliminate: Parameter `count` should be in [0, 33]. Found 34."),
    ("obs_eliminate", 3, -1, "obs_eliminate: Parameter `count` should be in [0, 33]. Found -1."),
    ("obs_eliminate", 4, 5, "obs_eliminate: Parameter `keep` should be in [0, 4]. Found 5."),
    ("obs_eliminate", 5, 0, "obs_eliminate: Parameter `group` should be >= 1. Found 0."),
    ("obs_eliminate", 6, narrower, "obs_eliminate: Parameter `scales` should have size 33. Found 32."),
    ("obs_eliminate", 7, None, "obs_eliminate: Parameter `zeros` should be given with `scales`, and only with them."),
    ("obs_eliminate", 8, -1, "obs_eliminate: Parameter `levels` should be >= 1 where there are scales. Found -1."),
    ("restricted_solve", 0, narrower, "restricted_solve: Parameter `matrix` should have size 33. Found 32."),
    ("restricted_solve", 1, torch.Tensor.float, "restricted_solve: Parameter `target` should be float64."),
    ("restricted_solve", 2, torch.Tensor.double, "restricted_solve: Parameter `kept` should be bool. Found Double"),
]


@pytest.mark.parametrize(("name", "position", "value", "message"), REFUSED)
def test_direct_calls_refuse_what_they_would_misread(name: str, position: int, value: Any, message: str):
    with pytest.raises(RuntimeError, match=re.escape(message)) as error:
        operator(name)(*replaced(name, position, value))
    assert re.search(r": Parameter `\w+` should .* Found .+\.$", str(error.value).splitlines()[0])
