"""Columns spread over processes: shards of DTensors, or slices of what processes hold alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from torch.utils.dlpack import from_dlpack

from mfac.distributed.pieces import Whole

# The name from torch 2.13 on, and the one before.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


class Spread(Whole):
    """Every process has some columns of the window, and sums its part of products with the others'.

    Of a DTensor a process has the columns of its shard. Of what several processes hold alike it has
    a slice along the first dimension, moves that alone, and gets the others' weights after.

    Args:
        parameters: DTensors of one mesh, and plain tensors that are alike in all processes.
        mesh: Of the processes.

    Attributes:
        mesh: As given.
        summed: The dimensions of the mesh over which there are different columns. Over the others
            processes do the same work.
        number: Of this process among those that have different columns.
        among: Which processes those are; a key.
    """

    def __init__(self, parameters: Sequence[Tensor], mesh: DeviceMesh) -> None:
        self.mesh = mesh
        sharded = [_sharded(p) for p in parameters if isinstance(p, DTensor)]
        self.summed = sorted({i for dims in sharded for i in dims}) if sharded else list(range(mesh.ndim))
        self.among = (mesh, *self.summed)
        self.number, self._size = 0, 1
        for i in self.summed:
            self.number = self.number * mesh.size(i) + mesh.get_local_rank(i)
            self._size *= mesh.size(i)
        layout = [(*p.shape, *((i, type(s).__name__, s.dim) for i, s in _sharded(p).items())) for p in parameters]
        self._layout = zlib.crc32(repr((mesh.shape, layout)).encode())
        for parameter in parameters:
            dims, sliced = _sharded(parameter), self._sliced(parameter)
            if dims and sliced and min(sliced) < max(dims):
                placements = getattr(parameter, "placements", ())
                raise ValueError(
                    "Parameter `params` should be sharded over the first dimensions of its mesh. Found placements "
                    f"{placements} of shape {list(parameter.shape)} beside others; give it a group of its own."
                )

    def _sliced(self, parameter: Tensor) -> list[int]:
        """The dimensions of the mesh over which a parameter, alike in all processes, is sliced."""
        return [i for i in self.summed if i not in _sharded(parameter)]

    def of(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        whole = self._whole(parameter, tensor)
        for i in self._sliced(parameter):
            whole = self._slice(whole, i)
        return whole

    def _whole(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """This process's shard, or a plain tensor; of at least one dimension."""
        if isinstance(tensor, DTensor):
            if isinstance(parameter, DTensor) and tensor.placements != parameter.placements:
                tensor = tensor.redistribute(parameter.device_mesh, parameter.placements)
            tensor = tensor.to_local()
        return tensor.view(1) if tensor.dim() == 0 else tensor

    def _slice(self, tensor: Tensor, i: int) -> Tensor:
        """The slice of this process along the first dimension, over dimension i of the mesh."""
        length = -(-tensor.shape[0] // self.mesh.size(i))
        begin = min(self.mesh.get_local_rank(i) * length, tensor.shape[0])
        return tensor[begin : begin + length]

    def published(self, parameter: Tensor, piece: Tensor) -> Tensor:
        shape = tuple(parameter.shape) or (1,)
        before = piece.dim() - len(shape)
        shape = (*piece.shape[:before], *shape)
        found = dict(_sharded(parameter))
        placements: list[Placement] = []
        for i in range(self.mesh.ndim):
            if i in found:
                placements.append(_moved(found[i], before))
            else:
                placements.append(Shard(before) if i in self.summed else Replicate())
        stride = torch.empty(shape, device="meta").stride()
        # Torch copies and pickles no DTensor of memory that begins within another tensor's.
        piece = from_dlpack(piece.detach()) if piece.numel() else torch.empty_like(piece)
        found_tensor: Tensor = DTensor.from_local(
            piece, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )
        return found_tensor

    def taken(self, parameter: Tensor, value: object, like: Tensor) -> object:
        if not isinstance(like, DTensor) or not isinstance(value, Tensor):
            return super().taken(parameter, value, like)
        if isinstance(value, DTensor):
            if value.device_mesh == like.device_mesh:
                return value.redistribute(like.device_mesh, like.placements).to_local()
            value = value.full_tensor()
        if value.shape != like.shape:
            return value  # which the check refuses
        value = value.to(like.device)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to_local()

    def of_whole(
        self, parameters: Sequence[Tensor], pieces: Sequence[Tensor], function: Callable[[list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        likes = [self.published(parameter, piece) for parameter, piece in zip(parameters, pieces, strict=True)]
        found = function([like.full_tensor() for like in likes if isinstance(like, DTensor)])
        taken = [self.taken(p, whole, like) for p, whole, like in zip(parameters, found, likes, strict=True)]
        return [tensor for tensor in taken if isinstance(tensor, Tensor)]

    def key(self, name: str) -> str:
        return f"{name}.{self.number}_of_{self._size}_{self._layout:08x}"

    def sum_(self, products: Tensor) -> Tensor:
        for i in self.summed:
            distributed.all_reduce(products, group=self.mesh.get_group(i))
        return products

    def any(self, flag: bool) -> bool:
        found = torch.tensor([float(flag)], device=self.mesh.device_type)
        return bool(self.sum_(found) > 0)

    def exchange_(self, parameters: Sequence[Tensor]) -> None:
        for i in reversed(self.summed):
            by_dtype: dict[torch.dtype, list[Tensor]] = {}
            for parameter in parameters:
                sliced = self._sliced(parameter)
                if i in sliced:
                    whole = self._whole(parameter, parameter)
                    for j in sliced[: sliced.index(i)]:
                        whole = self._slice(whole, j)
                    by_dtype.setdefault(whole.dtype, []).append(whole)
            for tensors in by_dtype.values():
                self._gather_(tensors, i)

    def _gather_(self, tensors: list[Tensor], i: int) -> None:
        """Fills tensors, of which each process of dimension i of the mesh has a slice."""
        size = self.mesh.size(i)
        lengths = [-(-t.shape[0] // size) for t in tensors]
        widths = [length * t[:1].numel() for length, t in zip(lengths, tensors, strict=True)]
        mine = torch.zeros(sum(widths), dtype=tensors[0].dtype, device=tensors[0].device)
        for tensor, place in zip(tensors, mine.split(widths), strict=True):
            piece = self._slice(tensor, i)
            place[: piece.numel()] = piece.reshape(-1)
        everyone = mine.new_empty(size * len(mine))
        _all_gather(everyone, mine, group=self.mesh.get_group(i))
        columns = everyone.view(size, -1).split(widths, dim=1)
        for tensor, column in zip(tensors, columns, strict=True):
            tensor.copy_(column.reshape(-1)[: tensor.numel()].view(tensor.shape))


def _sharded(parameter: Tensor) -> dict[int, Any]:
    """The placements of a parameter that shard it, by dimension of the mesh."""
    placements = parameter.placements if isinstance(parameter, DTensor) else ()
    return {i: placement for i, placement in enumerate(placements) if hasattr(placement, "dim")}


def _moved(placement: Any, by: int) -> Placement:
    """A placement that shards a dimension further on."""
    more = {"split_factor": placement.split_factor} if hasattr(placement, "split_factor") else {}
    moved: Placement = type(placement)(placement.dim + by, **more)
    return moved
