"""Facts about single files with CompVis' names; diffusers' own converter is the reference for them."""

from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.checkpoints.bundle import Bundle
from ldm.exchange import compvis
from ldm.exchange.diffusers import unet_config, vae_config
from ldm.exchange.keymap import reverse, shapes, translate
from ldm.exchange.names import compvis_unet_rules, compvis_vae_rules, text_rules
from tests.exchange.both import outline

CONF = Path(__file__).parents[2] / "conf"
PARTS = ("backbone", "autoencoder", "text_encoder")


def assert_same(imported, expected) -> None:
    for name in PARTS:
        found, wanted = imported.parts[name].state, Bundle.open(expected).part(name).state
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def preset(group: str, name: str):
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


def test_our_names_are_what_diffusers_converts(file, saved, state):
    unet = diffusers.UNet2DConditionModel.load_config(saved / "unet")
    vae = diffusers.AutoencoderKL.load_config(saved / "vae")
    for found, folder in (
        (convert_ldm_unet_checkpoint(dict(state), config=unet), "unet"),
        (convert_ldm_vae_checkpoint(dict(state), config=vae), "vae"),
    ):
        wanted = load_file(saved / folder / "diffusion_pytorch_model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name].reshape(found[name].shape)) for name in wanted)


def test_every_tensor_of_stable_diffusion_at_its_size_has_its_place():
    backbone, autoencoder = preset("backbone", "unet_sd15"), preset("autoencoder", "kl_f8")
    rules = compvis_unet_rules(levels=backbone["transformer"]["levels"], blocks=2)
    written = {
        f"{compvis.BACKBONE}{key}": value
        for key, value in translate(outline(backbone), reverse(rules)).items()
    }
    assert len(written) == 686  # as in sd-v1-4.ckpt
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    converted = convert_ldm_unet_checkpoint(written, config=unet_config(backbone, latent_size=64))
    assert shapes(converted) == shapes(theirs.state_dict())

    written = translate(outline(autoencoder), reverse(compvis_vae_rules(num_levels=4)))
    assert len(written) == 248  # as in sd-v1-4.ckpt
    assert vae_config(autoencoder, scale=0.18215, size=512)["block_out_channels"] == [128, 256, 512, 512]

    encoder = preset("text_encoder", "sd15")
    translate(text.state_dict(), text_rules(prefix=""), expected=shapes(outline(encoder)))


def test_a_file_of_ours_tells_all_that_a_folder_does(file, tiny, imported, saved):
    found, wanted = tiny(file), tiny(saved)
    assert_same(found, imported)
    assert {key: value for key, value in found.settings.items() if key != "origin"} == wanted.settings
    assert found.tokenizer.fingerprint() == wanted.tokenizer.fingerprint()


def test_a_file_without_a_header_is_of_the_architecture_that_is_named(state, tiny, imported, tmp_path):
    save_file(state, tmp_path / "plain.safetensors")
    assert_same(tiny(tmp_path / "plain.safetensors"), imported)


def test_a_training_checkpoint_of_compvis_is_read(state, tiny, imported, tmp_path):
    """It holds tables, averages and a class of Lightning's beside the weights."""
    extra = {
        "betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
        "alphas_cumprod_prev": torch.ones(3),
        "lvlb_weights": torch.ones(3),
        "posterior_variance": torch.ones(3),
        "model_ema.decay": torch.ones(()),
        "model_ema.diffusion_modelout2weight": torch.ones(2),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
    }
    content = {"state_dict": state | extra, "global_step": 470000, "callbacks": {ModelCheckpoint: {"a": 1}}}
    torch.save(content, tmp_path / "model.ckpt")
    found = tiny(tmp_path / "model.ckpt")
    assert_same(found, imported)
    assert found.left_out == ["model_ema.*", "betas", "alphas_cumprod*", "posterior_*", "lvlb_weights"]
    assert found.notes == [
        "model.ckpt: the weights of the last step were read, not their EMA, model_ema.*: "
        "weights=ema reads that"
    ]


def test_an_autoencoder_alone_is_a_bundle_of_that_part(state, tiny, imported, tmp_path):
    """As CompVis trains it, beside the discriminator that it was trained against."""
    prefix = compvis.AUTOENCODER
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    beside = {"loss.discriminator.main.0.weight": torch.ones(2), "loss.logvar": torch.ones(())}
    torch.save({"state_dict": own | beside}, tmp_path / "kl.ckpt")
    found, bundle = tiny(tmp_path / "kl.ckpt"), Bundle.open(imported)
    wanted = bundle.part("autoencoder").state
    assert list(found.parts) == ["autoencoder"]
    assert all(torch.equal(found.parts["autoencoder"].state[name], wanted[name]) for name in wanted)
    assert found.settings == {"latents": bundle.entry("latents")}
    assert found.left_out == ["loss.*"]
    torch.save(own | {"quant_conv.bias": torch.ones(3)}, tmp_path / "kl.ckpt")
    with pytest.raises(ValueError, match=r"shape of to_moments\.bias is \(3,\), wanted \(8,\)"):
        tiny(tmp_path / "kl.ckpt")


def test_diffusers_reads_the_whole_file(file, saved):
    """By its own reader of single files, with the configs of the folder."""
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(str(file), config=str(saved))
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        theirs = load_file(saved / f"{name}.safetensors")
        found = getattr(pipeline, name.partition("/")[0]).state_dict()
        assert all(torch.equal(found[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("key", ["strange.x", "first_stage_model.x", "model.diffusion_model.x.0"])
def test_a_tensor_that_is_nobodys_is_refused(state, tiny, tmp_path, key):
    save_file(state | {key: torch.ones(2)}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="unexpected"):
        tiny(tmp_path / "one.safetensors")


def test_another_architecture_is_refused_by_every_name(state, tiny, tmp_path):
    wrong = state | {"model.diffusion_model.out.2.weight": torch.zeros(4, 32, 1, 1)}
    del wrong["model.diffusion_model.time_embed.2.bias"]
    save_file(wrong, tmp_path / "one.safetensors")
    with pytest.raises(
        ValueError, match=r"missing time\.out\.bias; shape of conv_out\.weight is \(4, 32, 1, 1\)"
    ):
        tiny(tmp_path / "one.safetensors")


@pytest.mark.parametrize("header", ["", "{}", "[]", '{"unet": 3}', "[" * 10_000, '{"unet": {"patch": 1}}'])
def test_a_damaged_header_is_refused(state, tiny, tmp_path, header):
    save_file(state, tmp_path / "one.safetensors", metadata={"ldm": header})
    with pytest.raises(ValueError, match="header's entry 'ldm' is damaged"):
        tiny(tmp_path / "one.safetensors")


def averages(state) -> dict[str, torch.Tensor]:
    """Averages of the U-Net's weights, twice as large, named as CompVis names them."""
    own = {name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.diff")}
    return {f"model_ema.{name.replace('.', '')}": 2 * x for name, x in own.items()}


def test_the_averages_of_a_training_are_taken_where_they_are_asked_for(state, tiny, tmp_path):
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    path = tmp_path / "both.ckpt"
    torch.save({"state_dict": state | averages(state) | counters}, path)
    last, ema = tiny(path), tiny(path, averaged=True)
    for name, weight in last.parts["backbone"].state.items():
        assert torch.equal(ema.parts["backbone"].state[name], 2 * weight)
    assert torch.equal(*(each.parts["autoencoder"].state["to_moments.weight"] for each in (last, ema)))
    assert "weights=ema reads that" in last.notes[0]
    assert last.left_out == ["model_ema.*"]
    assert ema.left_out == ["model.diffusion_model.* of the last step"]


def test_averages_that_are_not_all_there_are_refused(state, saved, tiny, tmp_path):
    some = averages(state)
    some.popitem()
    for tensors in (state, state | some):
        save_file(tensors, tmp_path / "one.safetensors")
        with pytest.raises(ValueError, match=r"does not hold the EMA \(model_ema\.\*\) of each weight"):
            tiny(tmp_path / "one.safetensors", averaged=True)
    with pytest.raises(ValueError, match="does not hold the EMA"):
        tiny(saved, averaged=True)


def test_weights_in_16_bits_are_named(state, tiny, tmp_path):
    save_file({name: x.half() for name, x in state.items()}, tmp_path / "one.safetensors")
    sentence = "the files hold float16 weights: precision=float16 keeps their size"
    assert sentence in tiny(tmp_path / "one.safetensors").notes
