"""Models that several ranks share (DDP, FSDP2, tensor parallelism) as plain ones: the same modules, whole weights, no hooks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ._dtensors import found, is_sharded, replicated
from ._modules import copy_of

_STATE = "__composable_api_"  # under which torch keeps what fully_shard needs


def is_shared(model: Any) -> bool:
    """Whether ranks hold the model together. Costs a pass over its modules."""
    if not isinstance(model, nn.Module):
        return False
    return any(isinstance(m, DistributedDataParallel) or _by_fsdp(m) for m in model.modules()) or found(list(model.parameters()))


def _by_fsdp(module: nn.Module) -> bool:
    """Whether fully_shard made a class of its own for it (``FSDPLinear``, of FSDPModule and Linear)."""
    return any(base.__name__ in ("FSDPModule", "ReplicateModule") for base in type(module).__mro__[1:])


def ranks_of(model: nn.Module) -> list[int]:
    """The ranks that hold it."""
    import torch.distributed as dist

    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return list(dist.get_process_group_ranks(module.process_group))
    reshard(model)
    for parameter in model.parameters():
        if is_sharded(parameter):
            sharded: Any = parameter
            return sorted(sharded.device_mesh.mesh.flatten().tolist())
    return list(range(dist.get_world_size()))


def reshard(model: nn.Module) -> None:
    """FSDP2 may have left weights whole after a forward pass."""
    for module in model.modules():
        if _by_fsdp(module):
            module.reshard()  # type: ignore[operator]


def inner(model: nn.Module) -> nn.Module:
    """What a DDP wrapper holds; else the model."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def refuse_flattened(model: Any) -> None:
    """Refuses the first generation of FSDP, in words."""
    if isinstance(model, nn.Module) and any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TypeError(
            "model: wrapped by FullyShardedDataParallel, whose flattened weights can't be read by name; accepted are fully_shard "
            "(FSDP2), DistributedDataParallel and plain models. Load a full state_dict into a plain model, or shard by fully_shard"
        )


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with whole weights on this rank, for which all ranks that hold the model must call this. A DDP wrapper is left out."""
    reshard(model)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if is_sharded(tensor):
            whole = replicated(tensor.detach()).clone()
            memo[id(tensor)] = nn.Parameter(whole, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole
    shells = []
    for module in model.modules():
        for key, hooks in vars(module).items():
            if key.endswith("_hooks") and isinstance(hooks, dict) and any(map(_torchs_own, hooks.values())):
                memo[id(hooks)] = type(hooks)((number, hook) for number, hook in hooks.items() if not _torchs_own(hook))
        if _by_fsdp(module):
            shell: nn.Module = object.__new__(_own_class(type(module)))
            memo[id(module)] = shell
            shells.append((module, shell))
    for module, shell in shells:
        state = {key: value for key, value in vars(module).items() if not key.startswith(_STATE)}
        vars(shell).update({key: copy.deepcopy(value, memo) for key, value in state.items()})
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            memo[id(module)] = copy.deepcopy(module.module, memo)
    work: nn.Module = memo[id(model)] if id(model) in memo else copy_of(model, memo)
    return work


def _own_class(kind: type) -> type:
    """The class that the user wrote: what stands behind FSDP's in the bases."""
    return kind.__bases__[-1]


def _torchs_own(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed")
