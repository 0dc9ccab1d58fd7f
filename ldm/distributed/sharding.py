"""FSDP2: parameters, gradients, optimizer moments and EMA sharded across the ranks.

This is stage 3 of ZeRO (Rajbhandari et al. 2020, sec. 5.3) as torch's `fully_shard` implements it: the
weights of a part are gathered just before it is used, and freed after.
"""

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from ldm.distributed.ranks import world_size
from ldm.models.attention import AttentionPool, CrossAttention, FeedForward, SelfAttention
from ldm.models.blocks import Downsample, ResnetBlock, Upsample

PARTS = (ResnetBlock, SelfAttention, CrossAttention, AttentionPool, FeedForward, Downsample, Upsample)


class Sharded(ModelParallelStrategy):
    """All ranks on one axis. A stage that finds a strategy with `shard` calls it in `configure_model`.

    Args:
        save_shards: a checkpoint is a folder to which each rank writes its shards, readable by any number of
            ranks; else it is one file with whole tensors, as with other strategies. The EMA is saved whole in
            both.
    """

    def __init__(self, *, save_shards: bool = False) -> None:
        super().__init__(
            data_parallel_size=world_size(), tensor_parallel_size=1, save_distributed_checkpoint=save_shards
        )

    def shard(self, net: nn.Module) -> nn.Module:
        """Shards a network in place."""
        return shard(net, self.device_mesh["data_parallel"])


def shard(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards a network over a mesh, in place: its large parts one by one, then the rest.

    A network that is sharded already is left as it is.
    """
    if isinstance(net, FSDPModule):
        return net
    for part in [module for module in net.modules() if isinstance(module, PARTS)]:
        fully_shard(part, mesh=mesh)
        if isinstance(part, CrossAttention):
            register_fsdp_forward_method(part, "project")  # is called alone, before the blocks
    # the rest is freed after each use as well: the EMA is updated from shards, also right after sampling
    return fully_shard(net, mesh=mesh, reshard_after_forward=True)
