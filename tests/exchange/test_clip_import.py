"""Facts about foreign CLIPs: the same features there and here, from every form they are published in."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from ldm.construct import construct
from ldm.exchange.clip import openclip_config, openclip_specs
from ldm.exchange.imported import Imported

TOWERS = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 640, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def tokens() -> torch.Tensor:
    rows = torch.randint(600, (3, 12))
    rows[:, 0], rows[0, 5], rows[1, 11], rows[2, 8] = 638, 639, 639, 639
    return rows


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16)


def random(model: nn.Module) -> nn.Module:
    """The model with no weight at a constant that a wrong map would not change."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def openclip_model(quick: bool) -> nn.Module:
    return random(
        open_clip.CLIP(
            **{key: dict(v) if isinstance(v, dict) else v for key, v in TOWERS.items()}, quick_gelu=quick
        )
    )


def features(imported, tokens, images):
    """Text and picture features of an imported pair of towers, for pictures already normalised."""
    towers = {}
    for name, part in imported.parts.items():
        towers[name] = construct(part.spec).eval()
        towers[name].load_state_dict(dict(part.state))
    image = towers["image_encoder"]
    image._normalise = lambda x: x
    with torch.no_grad():
        return towers["text_encoder"](tokens).pooled, image(images)


def assert_same_features(imported, model, tokens, images) -> None:
    texts, pictures = features(imported, tokens, images)
    with torch.no_grad():
        assert_close(texts, model.encode_text(tokens), atol=1e-5, rtol=0)
        assert_close(pictures, model.encode_image(images), atol=1e-5, rtol=0)


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(TOWERS | {"quick_gelu": True}))
    return str(tmp_path / "tiny.json")


@pytest.mark.parametrize("form", ["weights", "training", "safetensors"])
def test_open_clips_files_give_the_same_features(tiny, tmp_path, config, tokens, images, form):
    model = openclip_model(quick=True)
    state, path = model.state_dict(), tmp_path / "clip"
    if form == "safetensors":
        save_file(state, path)
    else:
        ddp = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save(state if form == "weights" else {"epoch": 3, "state_dict": ddp}, path)
    imported = tiny(path, clip=config)
    assert_same_features(imported, model, tokens, images)
    assert imported.left_out == ["logit_scale"]


def test_a_torchscript_archive_as_openais_gives_the_same_features(tiny, tmp_path, config, tokens, images):
    model = openclip_model(quick=True)
    traced = torch.jit.trace(model, (images, tokens), check_trace=False)
    torch.jit.save(traced, tmp_path / "ViT.pt")
    assert_same_features(tiny(tmp_path / "ViT.pt", clip=config), model, tokens, images)


def test_a_config_beside_the_file_tells_the_model_and_its_pictures(tiny, tmp_path, tokens, images):
    model = openclip_model(quick=True)
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    beside = {
        "model_cfg": TOWERS | {"quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    found = tiny(tmp_path / "clip.safetensors")
    assert_same_features(found, model, tokens, images)
    assert found.parts["image_encoder"].spec["pixels"] == [[0.5] * 3, [0.25] * 3]
    (tmp_path / "gelu.json").write_text(json.dumps(TOWERS))
    with pytest.raises(ValueError, match=r"describes another model than architecture=.*: leave it out"):
        tiny(tmp_path / "clip.safetensors", clip=str(tmp_path / "gelu.json"))


def test_openais_own_file_is_not_read_with_the_other_activation(tiny, tmp_path):
    sizes = {name: torch.tensor(16) for name in ("input_resolution", "context_length", "vocab_size")}
    save_file(openclip_model(quick=True).state_dict() | sizes, tmp_path / "clip.safetensors")
    (tmp_path / "gelu.json").write_text(json.dumps(TOWERS))
    with pytest.raises(ValueError, match="is OpenAI's own CLIP, trained with quick_gelu"):
        tiny(tmp_path / "clip.safetensors", clip=str(tmp_path / "gelu.json"))


def test_a_preprocessor_beside_transformers_clip_tells_its_pictures(tiny, tmp_path):
    random(CLIPVisionModelWithProjection(VISION)).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    assert tiny(tmp_path).parts["image_encoder"].spec["pixels"] == [[0.5] * 3, [0.25] * 3]
    path.write_text(json.dumps({"image_mean": [0.5], "image_std": [0.25]}))
    with pytest.raises(ValueError, match="image_mean and image_std must have 3 numbers"):
        tiny(tmp_path)


SIZES = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = CLIPTextConfig(
    **SIZES,
    vocab_size=640,
    max_position_embeddings=12,
    bos_token_id=638,
    eos_token_id=639,
    pad_token_id=0,
    projection_dim=8,
)
VISION = CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, projection_dim=8)


def test_transformers_clip_gives_the_same_features(tiny, tmp_path, tokens, images):
    both = CLIPConfig(text_config=TEXT.to_dict(), vision_config=VISION.to_dict(), projection_dim=8)
    model = random(CLIPModel(both))
    model.save_pretrained(tmp_path)
    texts, pictures = features(tiny(tmp_path), tokens, images)
    with torch.no_grad():
        expected = model(input_ids=tokens, pixel_values=images)
    for ours, theirs in ((texts, expected.text_embeds), (pictures, expected.image_embeds)):
        assert_close(nn.functional.normalize(ours, dim=-1), theirs, atol=1e-5, rtol=0)


def test_so_does_each_tower_of_its_own(tiny, tmp_path, tokens, images):
    text, vision = random(CLIPTextModelWithProjection(TEXT)), random(CLIPVisionModelWithProjection(VISION))
    for model, name in ((text, "text"), (vision, "vision")):
        model.save_pretrained(tmp_path / name)
    towers = Imported(parts=tiny(tmp_path / "text").parts | tiny(tmp_path / "vision").parts)
    texts, pictures = features(towers, tokens, images)
    with torch.no_grad():
        assert_close(texts, text(tokens).text_embeds, atol=1e-5, rtol=0)
        assert_close(pictures, vision(images).image_embeds, atol=1e-5, rtol=0)


def test_a_picture_tower_that_leads_to_no_space_is_refused(tiny, tmp_path):
    CLIPVisionModel(VISION).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks visual_projection\.weight.*CLIPVisionModelWithProjection"):
        tiny(tmp_path)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14", "ViT-bigG-14"])
def test_open_clips_models_of_our_kind_are_covered_at_their_size(name):
    text, image = openclip_specs(openclip_config(name)) if "G" not in name else (None, None)
    if text is None:
        with pytest.raises(ValueError, match="mlp_ratio"):
            openclip_specs(openclip_config(name))
        return
    with torch.device("meta"):
        theirs = open_clip.create_model(name, pretrained=None, device="meta")
        for spec, tower in ((text, theirs.transformer), (image, theirs.visual.transformer)):
            ours = construct(spec)
            assert len(ours.blocks) == len(tower.resblocks)
            assert ours.blocks[0].attention.num_heads == tower.resblocks[0].attn.num_heads


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name='roberta-base'"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "timm_model_name='convnext_base'"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "layers="),
        ({"vision_cfg": TOWERS["vision_cfg"] | {"layers": 3}}, "missing image.blocks.2"),
        ({"embed_dim": 16}, "shape of text.projection.weight"),
        ({"custom_text": True}, "custom_text=True"),
    ],
)
def test_a_config_of_another_kind_or_another_model_is_refused(tiny, tmp_path, change, sentence):
    save_file(openclip_model(quick=False).state_dict(), tmp_path / "clip.safetensors")
    (tmp_path / "tiny.json").write_text(json.dumps(TOWERS | change))
    with pytest.raises(ValueError, match=sentence):
        tiny(tmp_path / "clip.safetensors", clip=str(tmp_path / "tiny.json"))


def test_the_model_must_be_named(tiny, tmp_path):
    save_file(openclip_model(quick=False).state_dict(), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="as in architecture=ViT-B-32"):
        tiny(tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-Z'"):
        tiny(tmp_path / "clip.safetensors", clip="ViT-Z")


def test_a_renamed_tensor_is_named_twice(tiny, tmp_path, config):
    state = openclip_model(quick=True).state_dict()
    state["ln_finish.weight"] = state.pop("ln_final.weight")
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"missing text\.norm\.weight; unexpected ln_finish\.weight"):
        tiny(tmp_path / "clip.safetensors", clip=config)
    assert load_file(tmp_path / "clip.safetensors")
