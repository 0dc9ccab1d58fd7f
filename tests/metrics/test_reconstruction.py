import math

import pytest
import torch

from ldm.metrics.reconstruction import Reconstruction, psnr, ssim


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
