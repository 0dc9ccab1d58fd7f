import math

import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from ldm.io.reading import hash_file
from ldm.metrics.frechet import Moments, frechet_distance
from ldm.metrics.networks import EfficientNetLite0, Lpips
from ldm.metrics.reconstruction import Reconstruction, psnr, ssim

ALEXNET = {1: [0], 2: [3], 3: [6], 4: [8], 5: [10]}  # convolutions of each slice of LPIPS


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 246, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def test_psnr_of_a_constant_error():
    images = pictures(2)
    found = psnr(images + torch.tensor([1, 10], dtype=torch.uint8).view(2, 1, 1, 1), images)
    assert found.tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(25.5)])


def test_psnr_without_any_error_is_finite_and_above_any_other():
    images = pictures(1)
    one_step = images.clone()
    one_step[0, 0, 0, 0] += 1
    assert psnr(images, images).isfinite().all()
    assert psnr(images, images) >= psnr(one_step, images)


def test_equal_pictures_have_ssim_one_and_others_less():
    images = pictures(2)
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert (ssim(images.flip(-1), images) < 0.5).all()


def test_ssim_is_computed_in_float32_whatever_the_precision_of_the_training():
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    changed = (images * 0.8 + 20).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ssim(changed, images)
    assert torch.equal(found, ssim(changed, images))  # it was 0.001 off, and 0.08 for blurred pictures


def test_metric_is_the_mean_over_pictures_not_over_batches():
    originals, images = pictures(5), pictures(5, seed=1)
    metric = Reconstruction()
    metric.update(images[:1], originals[:1])
    metric.update(images[1:], originals[1:])
    found = metric.compute()
    assert found["psnr"] == pytest.approx(psnr(images, originals).mean().item())
    assert found["ssim"] == pytest.approx(ssim(images, originals).mean().item())


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(pictures(1)[..., :8, :8], pictures(1)[..., :8, :8])


def test_distances_are_means_over_pairs_in_the_networks_range():
    """Pictures of 0 and of 255 lie at -1 and 1: 2 apart."""
    black = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    metric = Reconstruction(distances={"gap": lambda a, b: (a - b).abs().amax(dim=(1, 2, 3))})
    metric.update(black[:1], black[:1])
    metric.update(black[1:], black[1:] + 255)
    assert metric.compute()["gap"] == pytest.approx(4 / 3)


def test_frechet_distance_of_the_round_trip():
    extractor = EfficientNetLite0(size=32)
    originals, images = pictures(6), pictures(6, seed=1)
    metric = Reconstruction(extractor=extractor)
    for part in (slice(0, 2), slice(2, 6)):
        metric.update(images[part], originals[part])
    real, made = (Moments.of(extractor(side)["efficientnet_lite0"]) for side in (originals, images))
    expected = frechet_distance(made.gaussian(), real.gaussian())
    assert metric.compute()["rfd_efficientnet_lite0"] == pytest.approx(expected.item(), rel=1e-5)
    metric.reset()
    metric.update(images, images)
    assert metric.compute()["rfd_efficientnet_lite0"] == pytest.approx(0, abs=1e-9)


def test_lpips_is_torchmetrics_with_the_weights_of_the_file(tmp_path):
    with torch.device("meta"):
        backbone = alexnet(weights=None)
    for layer in backbone.features.to_empty(device="cpu"):
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    backbone.classifier.to_empty(device="cpu")  # is checked, and not used
    path = tmp_path / "alexnet.pth"
    torch.save(backbone.state_dict(), path)
    ours, theirs = Lpips(weights=str(path), sha256=hash_file(path)), _LPIPS(net="alex", pnet_rand=True)
    renamed = {f"slice{part}.{layer}": layer for part, layers in ALEXNET.items() for layer in layers}
    for name, layer in renamed.items():
        theirs.net.get_submodule(name).load_state_dict(backbone.features[layer].state_dict())
    pair = 2 * torch.rand(2, 2, 3, 64, 64) - 1
    torch.testing.assert_close(ours(*pair), theirs(*pair).flatten(), atol=1e-6, rtol=0)
    assert (ours(pair[0], pair[0]) == 0).all()
    with pytest.raises(ValueError, match="expected 7be5be791159"):
        Lpips(weights=str(path))
