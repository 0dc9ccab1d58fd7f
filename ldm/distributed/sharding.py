"""Weights, gradients, moments and average dealt out over the ranks, each of which holds its share of them.

This is stage 3 of ZeRO (Rajbhandari et al. 2020, sec. 5.3) as torch's `fully_shard` does it: the weights of a
part are gathered just before it is used, and let go after.
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
    """All ranks on one axis; a stage deals its network out in `configure_model`.

    Args:
        save_shards: training states are folders to which each rank writes its shards, to be read by any
            number of ranks; else each is one file with whole tensors, as the other trainers write it. The
            average is saved whole in both.
    """

    def __init__(self, *, save_shards: bool = False) -> None:
        super().__init__(
            data_parallel_size=world_size(), tensor_parallel_size=1, save_distributed_checkpoint=save_shards
        )

    def deal_out(self, net: nn.Module) -> nn.Module:
        """The network in shards, changed in place."""
        return shard(net, self.device_mesh["data_parallel"])


def shard(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Deals a denoiser's weights out over a mesh, in place: its large parts one by one, then what is left.

    A network that is in shards already is left as it is.
    """
    if isinstance(net, FSDPModule):
        return net
    for part in [module for module in net.modules() if isinstance(module, PARTS)]:
        fully_shard(part, mesh=mesh)
        if isinstance(part, CrossAttention):
            register_fsdp_forward_method(part, "project")  # is called alone, before the blocks
    # what is left, too, is let go after each use: the average is updated from shards, also after a drawing
    return fully_shard(net, mesh=mesh, reshard_after_forward=True)
