"""The names of open_clip's weights, checked at full size without any weights."""

from pathlib import Path

import pytest
import torch
import yaml

from ldm.construct import construct
from ldm.exchange.keymap import reverse, shapes, translate
from ldm.exchange.names import openclip_rules
from ldm.models.clip import CLIP

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("preset", "vision", "text"),
    [
        (
            "clip_vit_b32",
            {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12},
            {"width": 512, "heads": 8},
        ),
        (
            "clip_vit_l14",
            {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 24},
            {"width": 768, "heads": 12},
        ),
    ],
)
def test_every_tensor_of_the_published_models_has_its_place(preset, vision, text):
    open_clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        theirs = open_clip.CLIP(embed_dim=text["width"], vision_cfg=vision, text_cfg=text, quick_gelu=True)
        parts = (yaml.safe_load((CONF / f"{g}_encoder/{preset}.yaml").read_text()) for g in ("text", "image"))
        ours = CLIP(**dict(zip(("text", "image"), map(construct, parts), strict=True)))
    wanted = shapes(theirs.state_dict())
    there = translate(theirs.state_dict(), openclip_rules(), expected=shapes(ours.state_dict()))
    back = translate(there, reverse(openclip_rules()), expected=wanted)
    assert shapes(back) == wanted


def test_a_missing_and_a_foreign_tensor_are_both_named():
    state = {"logit_scale": torch.tensor(1.0), "visual.attnpool.bias": torch.zeros(2)}
    expected = {"logit_scale": torch.Size(()), "text.positions": torch.Size((2, 2))}
    with pytest.raises(ValueError, match=r"missing text\.positions.*unexpected visual\.attnpool\.bias"):
        translate(state, openclip_rules(), expected=expected)
