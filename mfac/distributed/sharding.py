"""How the parameters of a group are spread over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed

from mfac.distributed.pieces import Whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Group:
    """A process group or None; copies of an optimizer share it.

    Args:
        found: The group.
    """

    def __init__(self, found: ProcessGroup | None) -> None:
        self.found = found

    def __deepcopy__(self, memo: object) -> Group:
        return self


def pieces_for(parameters: Sequence[Tensor], group: Group) -> Whole:
    """Which piece of each parameter is this process's.

    Args:
        parameters: DTensors, or plain tensors that every process holds whole.
        group: Of the processes that spread plain tensors; of None for one process, or where
            DTensors say which they are.

    Returns:
        What knows of each.

    Raises:
        ValueError: If a process group is given and a parameter is a DTensor, or the group does not
            have this process; if DTensors are on several meshes, or one's placements cannot be told
            apart from a slice; if parameters are flattened by `FullyShardedDataParallel`.
    """
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in parameters):
        raise ValueError(
            "Parameter `params` should be sharded by torch.distributed.fsdp.fully_shard, whose parameters know their "
            "shards. Found parameters of FullyShardedDataParallel."
        )
    process_group = group.found
    sharded = [parameter for parameter in parameters if hasattr(parameter, "device_mesh")]
    if not sharded and process_group is None:
        return Whole()
    # Imported here, as it takes a second: most programs are of one process.
    from torch.distributed.device_mesh import DeviceMesh

    from mfac.distributed.spread import Spread

    if process_group is not None:
        if sharded:
            raise ValueError(
                "Parameter `process_group` should be None where parameters are DTensors, whose mesh says which "
                "processes have them. Found a group."
            )
        if distributed.get_rank(process_group) < 0:
            raise ValueError("Parameter `process_group` should have this process. Found a group without it.")
        if distributed.get_world_size(process_group) == 1:
            return Whole()
        return Spread(parameters, DeviceMesh.from_group(process_group, parameters[0].device.type))
    meshes = {parameter.device_mesh for parameter in sharded}
    if len(meshes) > 1:
        raise ValueError(
            f"Parameter `params` should have the DTensors of a group on one mesh. Found {len(meshes)}: give each "
            "mesh a group of its own."
        )
    return Spread(parameters, meshes.pop())


def local_like(whole: Tensor, sharded: Any) -> Tensor:
    """This process's part of a tensor that all have whole, laid out as a DTensor of its shape."""
    from torch.distributed.tensor import distribute_tensor

    mesh = sharded.device_mesh
    return distribute_tensor(whole.to(sharded.device), mesh, sharded.placements, src_data_rank=None).to_local()
