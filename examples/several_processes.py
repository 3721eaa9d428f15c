"""Processes that each hold a shard of the weights and of the window: fully_shard, and a checkpoint.

Run with `torchrun --nproc-per-node 2 -m examples.several_processes`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import mfac


def sharded_run(mesh: DeviceMesh) -> tuple[nn.Module, mfac.MFAC]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, mfac.MFAC(model.parameters(), rank=32, weight_decay=0.01, decoupled_weight_decay=True)


def batches(mesh: DeviceMesh, begin: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of every batch."""
    for number in range(begin, end):
        inputs = torch.randn(64, 20, generator=torch.Generator().manual_seed(number))
        mine = inputs.chunk(mesh.size())[mesh.get_local_rank()]
        yield mine, (mine[:, 0] * mine[:, 1] > 0).long()


def train(model: nn.Module, opt: mfac.MFAC, data: Iterator[tuple[Tensor, Tensor]]) -> float:
    loss = torch.zeros(())
    for inputs, labels in data:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        opt.step()
    return loss.item()


def run(mesh: DeviceMesh, folder: str, steps: int = 100) -> tuple[float, float]:
    """The last loss of a run that is saved on its way, and of another that goes on from there."""
    group = mesh.get_group()
    model, opt = sharded_run(mesh)
    train(model, opt, batches(mesh, 0, steps))
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "opt": state}, checkpoint_id=folder, process_group=group)
    last = train(model, opt, batches(mesh, steps, steps + steps // 2))

    model, opt = sharded_run(mesh)
    weights, state = get_state_dict(model, opt)
    dcp.load({"model": weights, "opt": state}, checkpoint_id=folder, process_group=group)
    set_state_dict(model, opt, model_state_dict=weights, optim_state_dict=state)
    return last, train(model, opt, batches(mesh, steps, steps + steps // 2))


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    folders = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folders)
    last, again = run(mesh, folders[0])
    mine = sharded_run(mesh)[1].window.nbytes
    print(f"process {mesh.get_local_rank()}: loss {last:.4f}, resumed {again:.4f}; {mine} bytes of window")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
