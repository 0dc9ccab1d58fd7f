"""Facts about weights in several files, under wrapped names, in variants, and of other kinds of models."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoints.bundle import Bundle

UNET = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def cut(copied):
    """`cut(index, shard)`: the U-Net's file in two, under these names; the index's content."""

    def call(index=f"{UNET}.index.json", shard="diffusion_pytorch_model-{}-of-00002.safetensors") -> dict:
        folder = copied / "unet"
        state = load_file(folder / UNET)
        (folder / UNET).unlink()
        table = {}
        for number in (1, 2):
            name = shard.format(f"{number:05d}")
            part = {key: state[key] for key in sorted(state)[number - 1 :: 2]}
            save_file(part, folder / name)
            table |= dict.fromkeys(part, name)
        content = {"metadata": {"total_size": 1}, "weight_map": table}
        (folder / index).write_text(json.dumps(content))
        return content

    return call


def assert_same_unet(found, imported) -> None:
    ours, expected = found.parts["backbone"].state, Bundle.open(imported).part("backbone").state
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        ((), []),
        (
            (
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16-{}-of-00002.safetensors",
            ),
            [
                "unet/diffusion_pytorch_model.safetensors.index.fp16.json was read, "
                "because there is no file without .fp16"
            ],
        ),
    ],
)
def test_shards_are_one_network(cut, copied, tiny, imported, names, notes):
    cut(*names)
    found = tiny(copied)
    assert_same_unet(found, imported)
    assert found.notes == notes
    assert sum("-of-00002" in path.name for path in found.files) == 2


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/passwd", "..", "a\\b"])
def test_an_index_names_files_of_its_own_folder_alone(cut, copied, tiny, outside):
    content = cut()
    content["weight_map"]["conv_in.bias"] = outside
    (copied / "unet" / f"{UNET}.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="which is no file of its folder"):
        tiny(copied)


@pytest.mark.parametrize("table", [None, [], {}, {"conv_in.bias": 3}])
def test_a_damaged_index_is_refused(cut, copied, tiny, table):
    cut()
    (copied / "unet" / f"{UNET}.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(ValueError, match="weight_map must name the file of each tensor"):
        tiny(copied)


def test_a_shard_that_is_missing_or_not_listed_is_named(cut, copied, tiny):
    cut()
    extra = copied / "unet" / "diffusion_pytorch_model-00003-of-00003.safetensors"
    save_file({"x": torch.ones(1)}, extra)
    with pytest.raises(ValueError, match="does not list diffusion_pytorch_model-00003-of-00003"):
        tiny(copied)
    extra.unlink()
    (copied / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"lacks diffusion_pytorch_model-00002-of-00002\.safetensors, of 2 files"
    ):
        tiny(copied)


@pytest.mark.parametrize("fault", ["lacks", "holds also"])
def test_a_shard_that_holds_others_than_its_index_says_is_refused(cut, copied, tiny, fault):
    content = cut()
    if fault == "lacks":
        content["weight_map"]["conv_in.strange"] = next(iter(content["weight_map"].values()))
    else:
        del content["weight_map"]["conv_in.bias"]
    (copied / "unet" / f"{UNET}.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{fault} conv_in\.(strange|bias), unlike"):
        tiny(copied)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_variant_stands_in_for_the_plain_file_and_that_is_said(copied, tiny, variant):
    name = {"fp16": "float16", "bf16": "bfloat16"}[variant]
    kind = getattr(torch, name)
    path = copied / "unet" / UNET
    half = {key: tensor.to(kind) for key, tensor in load_file(path).items()}
    path.unlink()
    save_file(half, path.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    found = tiny(copied)
    assert found.parts["backbone"].state["conv_in.bias"].dtype == kind
    assert found.notes == [
        f"unet/diffusion_pytorch_model.{variant}.safetensors was read, because there is no file without "
        f".{variant}",
        f"the files hold {name} weights: precision={name} keeps their size",
    ]


@pytest.mark.parametrize(
    "wrapped",
    ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "model.{}", "ema.{}", "ema_model.module.{}"],
)
def test_wrappers_of_a_training_are_taken_off_and_that_is_said(copied, tiny, imported, wrapped):
    path = copied / "unet" / UNET
    save_file({wrapped.format(name): tensor for name, tensor in load_file(path).items()}, path)
    found = tiny(copied)
    assert_same_unet(found, imported)
    (note,) = found.notes
    assert note.startswith(f"{UNET}: {wrapped.format('conv_in.bias')} is read as conv_in.bias")


def test_a_wrapper_within_a_name_is_taken_off_and_a_whole_pipeline_keeps_its_prefixes(
    state, tiny, imported, tmp_path
):
    inner = {
        name.replace("model.diffusion_model.", "module.model._orig_mod.diffusion_model._orig_mod."): tensor
        for name, tensor in state.items()
    }
    save_file(
        {n if n.startswith("module.") else f"module.{n}": x for n, x in inner.items()}, tmp_path / "one"
    )
    assert_same_unet(tiny(tmp_path / "one"), imported)


def test_two_tensors_of_one_name_are_refused(copied, tiny):
    path = copied / "unet" / UNET
    save_file(load_file(path) | {"_orig_mod.conv_in.bias": torch.ones(32)}, path)
    with pytest.raises(ValueError, match=r"are both 'conv_in.bias': save one of them"):
        tiny(copied)


def test_a_checkpoint_with_two_sets_of_weights_is_refused_and_with_one_is_read(
    state, tiny, imported, tmp_path
):
    torch.save({"step": 3, "model": state}, tmp_path / "one.ckpt")
    assert_same_unet(tiny(tmp_path / "one.ckpt"), imported)
    torch.save({"step": 3, "model": state, "ema": state}, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="holds several sets of weights, model, ema: save one of them"):
        tiny(tmp_path / "two.ckpt")


def test_ten_problems_are_listed_with_the_nearest_names(copied, tiny):
    path = copied / "unet" / UNET
    save_file({name.replace("resnets", "resnet"): tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="The weights do not fit") as refused:
        tiny(copied)
    sentence = str(refused.value)
    assert sentence.count(";") == 10
    assert f"; and {int(sentence.split(' problems')[0].rsplit(maxsplit=1)[1]) - 10} more." in sentence


def test_an_unexpected_name_gets_the_nearest_missing_one(copied, tiny):
    path = copied / "unet" / UNET
    save_file({"conv_inn.bias" if n == "conv_in.bias" else n: x for n, x in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"unexpected conv_inn\.bias \(did you mean conv_in\.bias\?\)"):
        tiny(copied)


@pytest.mark.parametrize(
    ("name", "header", "kind"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", None, "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", None, "a LoRA"),
        ("base_model.model.text.q_proj.lora_B.default.weight", None, "a LoRA"),
        ("down_blocks.0.attn1.processor.to_q_lora.down.weight", None, "a LoRA"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a", None, "a LoRA"),
        ("x.weight", {"ss_network_module": "networks.lora"}, "a LoRA"),
        ("x.weight", {"modelspec.architecture": "stable-diffusion-v1/lora"}, "a LoRA"),
        ("x.weight", {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "Stable Diffusion XL"),
        ("conditioner.embedders.1.model.ln_final.weight", None, "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", None, "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", None, "Flux"),
        ("double_blocks.0.img_attn.qkv.weight", None, "Flux"),
        ("control_model.zero_convs.0.0.weight", None, "a ControlNet"),
        ("emb_params", None, "an embedding of textual inversion"),
    ],
)
def test_another_kind_of_model_is_called_by_its_name(tiny, tmp_path, name, header, kind):
    save_file({name: torch.ones(2, 2)}, tmp_path / "one.safetensors", metadata=header)
    with pytest.raises(ValueError, match=f"one.safetensors is not covered .*: it is {kind}"):
        tiny(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "an inpainting"), (8, "an InstructPix2Pix"), (5, "of another")]
)
def test_a_unet_that_reads_more_than_latents_is_called_by_its_name(state, tiny, tmp_path, channels, kind):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(state | {name: torch.ones(32, channels, 3, 3)}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=f"has {channels} input channels, ours has 4: it is {kind}"):
        tiny(tmp_path / "one.safetensors")


def test_the_text_states_of_another_version_are_told_from_the_unet(state, tiny, tmp_path):
    wider = {
        name: torch.ones(len(tensor), 24) if "attn2.to_k" in name or "attn2.to_v" in name else tensor
        for name, tensor in state.items()
    }
    save_file(wider, tmp_path / "one.safetensors")
    with pytest.raises(
        ValueError, match=r"reads text states of width 24, backbone= has 16; .*text_encoder=sd2"
    ):
        tiny(tmp_path / "one.safetensors")
