"""CLIP and DINOv2 as extractors: small networks of their make, with weights in the published formats."""

import json
from types import MappingProxyType

import open_clip
import pytest
import timm
import torch
from open_clip import get_tokenizer

from ldm.io.reading import hash_file
from ldm.metrics import networks
from ldm.metrics.networks import ClipFeatures, Dinov2, stretch_positions

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")  # OpenAI publishes TorchScript

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def pictures(count, side=48):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    config = tmp_path_factory.mktemp("open_clip") / "tiny_judge.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    return open_clip.CLIP(**open_clip.get_model_config("tiny_judge")).eval()


@pytest.fixture(params=["tensors", "script"])
def judge(clip, request, tmp_path, monkeypatch):
    table = MappingProxyType({"clip_vit_b32": "tiny_judge"})
    monkeypatch.setattr(networks, "CLIPS", table)
    path = tmp_path / "clip.pt"
    if request.param == "tensors":
        torch.save(clip.state_dict(), path)
    else:
        torch.jit.script(clip).save(path)
    return ClipFeatures(name="clip_vit_b32", weights=str(path), sha256=hash_file(path))


def test_clip_sees_what_open_clip_sees(judge, clip):
    """Pictures of the network's own size need no resize, so that the rest must agree to rounding."""
    images = pictures(2, side=32)
    mean, std = (
        torch.tensor(numbers).view(3, 1, 1)
        for numbers in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    found = judge(images)
    torch.testing.assert_close(
        found["clip_vit_b32_image"], clip.encode_image((images / 255 - mean) / std), atol=1e-5, rtol=0
    )
    assert dict(judge.dims) == {"clip_vit_b32_image": 16}


def test_clip_reads_what_open_clip_reads(judge, clip):
    texts = ["a red square", "dogs " * 100]
    expected = clip.encode_text(get_tokenizer("ViT-B-32")(texts))
    torch.testing.assert_close(judge.read(texts), expected, atol=1e-5, rtol=0)


def test_an_unknown_clip_is_refused():
    with pytest.raises(ValueError, match="is not one of clip_vit_b32, clip_vit_l14"):
        ClipFeatures(name="clip")


@pytest.fixture
def small_dino(tmp_path, monkeypatch):
    """The smallest network of DINOv2's family, its state as published: 37 x 37 positions and a mask token."""
    monkeypatch.setattr(Dinov2, "architecture", "vit_small_patch14_dinov2")
    state = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).state_dict()
    positions = torch.randn(1, 1 + 37 * 37, 384, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "dino.pth"
    torch.save(state | {"pos_embed": positions, "mask_token": torch.zeros(1, 384)}, path)
    return state, positions, path


def test_dino_gives_its_class_token(small_dino):
    state, positions, path = small_dino
    extractor = Dinov2(weights=str(path), sha256=hash_file(path))
    net = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    net.load_state_dict(state | {"pos_embed": stretch_positions(positions, side=16)})
    images = pictures(1, side=224)
    inputs = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    expected = net.forward_features(inputs)[:, 0]
    torch.testing.assert_close(extractor(images)["dinov2_vitl14"], expected, atol=1e-4, rtol=0)


def cubic(distance):
    """Keys' kernel with a = -3/4 at distances of at most 2."""
    d, a = distance.abs(), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return near.where(d <= 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)


def test_positions_are_stretched_as_the_authors_do():
    """A ramp by hand: their scale is 37 / 16.1, not 37 / 16. The class token is left alone."""
    ramp = torch.arange(37.0).view(1, 37, 1, 1).expand(1, 37, 37, 2).reshape(1, -1, 2)
    positions = torch.cat([torch.full((1, 1, 2), 7.0), ramp], dim=1)
    found = stretch_positions(positions, side=16)
    assert found.shape == (1, 257, 2)
    assert (found[:, 0] == 7).all()
    places = ((torch.arange(16) + 0.5) * (37 / 16.1) - 0.5)[1:-1]  # away from the edges
    around = places.floor()[:, None] + torch.arange(-1, 3)
    expected = (cubic(places[:, None] - around) * around).sum(1)
    rows = found[0, 1:, 0].view(16, 16)[1:-1]
    torch.testing.assert_close(rows, expected[:, None].expand(14, 16), atol=1e-4, rtol=0)
    assert torch.equal(stretch_positions(positions, side=37), positions)


def test_weights_of_another_dino_are_refused(small_dino, monkeypatch):
    _, _, path = small_dino
    monkeypatch.setattr(Dinov2, "architecture", "vit_tiny_patch16_224")
    sha256 = hash_file(path)
    with pytest.raises(ValueError, match="don't fit VisionTransformer"):
        Dinov2(weights=str(path), sha256=sha256)
