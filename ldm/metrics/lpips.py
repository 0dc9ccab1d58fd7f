"""LPIPS over AlexNet, for comparisons with the literature."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from ldm.metrics.weights import load_strictly, locate, read_state


class Lpips(nn.Module):
    """Learned perceptual distance v0.1 of pairs of pictures in [-1, 1] (Zhang et al. 2018, eq. 1).

    The weights of the layers lie in torchmetrics' wheel; AlexNet's own come from a file.

    Args:
        weights: path of AlexNet's state as torchvision publishes it; by default where `fetch` puts it.
        sha256: what that file must have; by default the published file's.

    Raises:
        UserError: no weights, other weights, weights of another network.
    """

    name: ClassVar[str] = "lpips"

    def __init__(self, *, weights: str | None = None, sha256: str | None = None) -> None:
        super().__init__()
        path = locate("alexnet", weights, sha256=sha256)
        backbone = alexnet(weights=None)
        load_strictly(backbone, read_state(path), source=path)
        self.net = _LPIPS(net="alex", pnet_rand=True)
        for part in self.net.net.children():
            for number, layer in part.named_children():
                layer.load_state_dict(backbone.features[int(number)].state_dict())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Lpips":
        return super().train(False)

    def forward(
        self, ours: Float[Tensor, "b 3 h w"], theirs: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of each pair; pictures of at least 32 px."""
        return self.net(ours, theirs).flatten()
