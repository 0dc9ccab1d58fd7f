"""Facts about diffusers folders: the same numbers there and here, the same bytes after a round trip."""

import json
import shutil

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPTextModel

from ldm.checkpoints.bundle import SHIPPED, Bundle, Part, write_bundle
from ldm.checkpoints.pipeline import open_pipeline
from ldm.config import CONF
from ldm.exchange.architecture import from_configs
from ldm.exchange.exporting import open_export, write_diffusers
from ldm.exchange.fields import Fields
from ldm.exchange.hub import locate
from ldm.exchange.schedulers import process_spec, sampling_spec, scheduler_config
from ldm.exchange.weights import expected_shapes

FILES = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
PROMPTS, SEEDS = ["grinning face", "a cat with a hat"], [3, 4]
DDIM = {
    "_target_": "ldm.diffusion.samplers.Sampling",
    "method": {"_target_": "ldm.diffusion.samplers.ddim", "_partial_": True},
    "grid": {"_target_": "ldm.diffusion.grids.trailing", "_partial_": True},
    "steps": 10,
}


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert_close(ours, theirs, atol=1e-5, rtol=0)


def export(bundle, out, **options):
    return write_diffusers(open_export(Bundle.open(bundle), options), out, dtype=torch.float32)


def drawn_by_both(bundle, folder, *, output: str, guidance: float = 3.0, **options):
    """Latents or pixels by a bundle and by a diffusers folder, from the same seeds."""
    ours = open_pipeline(Bundle.open(bundle), steps=10, scale=3.0, **options)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=10,
        guidance_scale=guidance,
        output_type=output,
    )
    return (ours.latents if output == "latent" else ours)(PROMPTS, SEEDS), theirs.images


def largest_difference(bundle, folder, **options) -> int:
    """Of any pixel, in levels of 255."""
    ours, theirs = drawn_by_both(bundle, folder, output="pt", **options)
    return int(((theirs * 255).round().int() - ours.int()).abs().max())


def latents_apart(bundle, folder, **options) -> float:
    """Largest difference of any latent, as a share of the largest one."""
    ours, theirs = drawn_by_both(bundle, folder, output="latent", **options)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# the configs of runwayml/stable-diffusion-v1-5, but for what its versions of the libraries add
STABLE_DIFFUSION = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "scheduler": {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
}


def test_stable_diffusions_published_configs_are_our_presets():
    told = from_configs({name: Fields(name, values) for name, values in STABLE_DIFFUSION.items()})
    presets = {"backbone": "unet_sd15", "autoencoder": "kl_f8", "text_encoder": "sd15", "process": "sd15"}
    for group, name in presets.items():
        preset = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=True)
        if group == "process":
            assert told.process == preset
        else:
            assert expected_shapes(getattr(told, group)) == expected_shapes(preset)
    assert told.text_encoder["activation"]["_target_"] == "ldm.models.clip.quick_gelu"
    assert told.backbone["transformer"]["num_heads"] == 8
    assert (told.size, told.latents["scale"]) == (512, [0.18215] * 4)


def test_the_unet_is_the_same_function(imported, saved):
    theirs = diffusers.UNet2DConditionModel.from_pretrained(saved / "unet").eval()
    ours = Bundle.open(imported).network("backbone")
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 977.0]), torch.randn(2, 16, 16)
    with torch.no_grad():
        assert_parity(ours(x, t, context), theirs(x, t, context).sample)


def test_the_autoencoder_is_the_same_function_both_ways(imported, saved):
    theirs = diffusers.AutoencoderKL.from_pretrained(saved / "vae").eval()
    bundle = Bundle.open(imported)
    ours, images = bundle.network("autoencoder"), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior, expected = ours.posterior(images), theirs.encode(images).latent_dist
        assert_parity(posterior.mean, expected.mean)
        assert_parity(posterior.logvar, expected.logvar)
        assert_parity(ours.decode(expected.mean), theirs.decode(expected.mean).sample)
    assert bundle.entry("latents") == {"shift": [0.0] * 4, "scale": [0.18215] * 4}


@pytest.mark.parametrize("state", ["last", "penultimate"])
def test_the_text_states_are_the_same(bundle_of, saved, tokenizer, state):
    theirs = CLIPTextModel.from_pretrained(saved / "text_encoder").eval()
    ours = Bundle.open(bundle_of(saved, text_state=state)).network("text_encoder")
    tokens = tokenizer.encode([*PROMPTS, ""])
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True)
        before = theirs.final_layer_norm(expected.hidden_states[-2])
        states = {"last": expected.last_hidden_state, "penultimate": before}
        assert_parity(ours(tokens).states, states[state])
    assert (states["last"] - states["penultimate"]).abs().max() > 0.01


def test_the_tokenizer_comes_back(imported, tokenizer):
    assert Bundle.open(imported).tokenizer().fingerprint() == tokenizer.fingerprint()


def test_diffusers_to_ours_to_diffusers_is_the_same_bytes(imported, saved, tmp_path):
    out = export(imported, tmp_path / "out")
    for file in FILES:
        theirs, ours = (load_file(folder / f"{file}.safetensors") for folder in (saved, out))
        ours = {name.removeprefix("text_model."): tensor for name, tensor in ours.items()}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ours_to_diffusers_to_ours_is_the_same_bytes(imported, bundle_of, tmp_path):
    again = bundle_of(export(imported, tmp_path / "out"))
    for name in ("backbone", "autoencoder", "text_encoder", "tokenizer"):
        file = f"{name}.json" if name == "tokenizer" else f"{name}.safetensors"
        assert (again / file).read_bytes() == (imported / file).read_bytes()
    ours, back = (
        {key: value for key, value in Bundle.open(path).config.items() if key not in ("origin", "parts")}
        for path in (imported, again)
    )
    assert back == ours


def test_both_draw_the_same_pictures(imported, saved, tmp_path):
    assert largest_difference(imported, saved) <= 1  # a value halfway between two levels may round apart
    assert largest_difference(imported, saved, guidance=5.0) > 1
    assert largest_difference(imported, export(imported, tmp_path / "out")) <= 1


def test_so_they_do_with_v_and_a_second_order_solver_and_linear_projections(
    save_pipeline, bundle_of, tmp_path
):
    solver = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear", prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )
    unet = {"use_linear_projection": True, "attention_head_dim": [4, 8]}
    folder = save_pipeline(tmp_path, unet=unet, scheduler=solver)
    bundle = bundle_of(folder)
    assert Bundle.open(bundle).entry("sampler")["method"]["_target_"] == "ldm.diffusion.samplers.dpmpp_2m"
    assert largest_difference(bundle, folder) <= 1
    out = export(bundle, tmp_path / "out")
    theirs, back = (load_file(each / f"{FILES[0]}.safetensors") for each in (folder, out))
    assert theirs.keys() == back.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("kind", "options", "method"),
    [
        ("DDPMScheduler", {}, "ddpm"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp_3m"),
        ("UniPCMultistepScheduler", {}, "unipc"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler"),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, "euler_ancestral"),
        ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, "edm"),
    ],
)
def test_so_they_do_with_every_class_that_is_written(
    save_pipeline, bundle_of, tmp_path, kind, options, method
):
    table = {key: STABLE_DIFFUSION["scheduler"][key] for key in ("beta_schedule", "beta_start", "beta_end")}
    spacing = {"timestep_spacing": "trailing", "steps_offset": 1}
    scheduler = getattr(diffusers, kind)(**(table | spacing | options))
    folder = save_pipeline(tmp_path, scheduler=scheduler)
    bundle = bundle_of(folder)
    assert Bundle.open(bundle).entry("sampler")["method"]["_target_"] == f"ldm.diffusion.samplers.{method}"
    assert latents_apart(bundle, folder) < 1e-4
    out = export(bundle, tmp_path / "out")
    assert json.loads((out / "model_index.json").read_text())["scheduler"] == ["diffusers", kind]
    assert latents_apart(bundle, out) < 1e-4


def test_a_class_that_ours_lacks_becomes_ddim_and_that_is_said(copied, tiny):
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "LMSDiscreteScheduler"}))
    found = tiny(copied)
    assert found.left_out == ["the steps of a LMSDiscreteScheduler"]
    assert found.settings["sampler"]["method"]["_target_"] == "ldm.diffusion.samplers.ddim"


@pytest.mark.parametrize(
    ("kind", "offset"), [("PNDMScheduler", 1), ("PNDMScheduler", 0), ("DDIMScheduler", 1)]
)
def test_so_they_do_with_stable_diffusions_own_scheduler(save_pipeline, bundle_of, tmp_path, kind, offset):
    """It stops at the table's first entry; a pipeline of diffusers takes every offset for 1."""
    published = {key: value for key, value in STABLE_DIFFUSION["scheduler"].items() if key != "clip_sample"}
    own = getattr(diffusers, kind).from_config(published | {"_class_name": kind, "steps_offset": offset})
    folder = save_pipeline(tmp_path, scheduler=own)
    bundle = bundle_of(folder)
    grid = Bundle.open(bundle).entry("sampler")["grid"]
    assert grid["clean"] is False
    assert latents_apart(bundle, folder) < 1e-4
    assert latents_apart(bundle, folder, grid=grid | {"clean": True}) > 1e-3
    out = export(bundle, tmp_path / "out")
    assert latents_apart(bundle, out) < 1e-4
    written = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    for key in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "set_alpha_to_one"):
        assert written[key] == published[key]
    assert (written["_class_name"], written["steps_offset"]) == (kind, 1)


@pytest.mark.parametrize(
    ("order", "method"), [(1, "ldm.diffusion.samplers.ddim"), (2, "ldm.diffusion.samplers.dpmpp_2m")]
)
def test_so_they_do_with_a_flow_and_a_pooled_context(save_pipeline, bundle_of, tmp_path, order, method):
    flow = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=order
    )
    unet = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    folder = save_pipeline(tmp_path, unet=unet, scheduler=flow)
    bundle = bundle_of(folder)
    assert Bundle.open(bundle).entry("sampler")["method"]["_target_"] == method
    assert Bundle.open(bundle).entry("sampler")["grid"]["shift"] == 3.0
    assert largest_difference(bundle, folder) <= 1
    out = export(bundle, tmp_path / "out")
    assert largest_difference(bundle, out) <= 1
    theirs, back = (load_file(each / f"{FILES[0]}.safetensors") for each in (folder, out))
    assert theirs.keys() == back.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("entry", "change", "sentence"),
    [
        ("process", {"network_time": {"_target_": "ldm.diffusion.process.scaled"}}, "network_time of a flow"),
        ("process", {"prediction": {"_target_": "ldm.diffusion.predictions.V"}}, "must be Flow"),
        ("sampler", {"method": {"_target_": "ldm.diffusion.samplers.heun"}}, "only ddim, dpmpp_2m"),
        ("sampler", {"grid": {"_target_": "ldm.diffusion.grids.uniform"}}, "uniform with first=0.999"),
    ],
)
def test_a_flow_that_diffusers_would_draw_otherwise_is_refused(entry, change, sentence):
    fields = Fields("flow", {"use_flow_sigmas": True})
    nodes = {"process": process_spec(fields), "sampler": sampling_spec(fields)}
    with pytest.raises(ValueError, match=sentence):
        scheduler_config(**(nodes | {entry: nodes[entry] | change}))


def test_half_precision_survives_the_round_trip(copied, tiny, tmp_path):
    file = copied / f"{FILES[0]}.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    bundle = tiny(copied).write(tmp_path / "bundle", locate(str(copied)), dtype=torch.float16)
    out = write_diffusers(open_export(Bundle.open(bundle), {}), tmp_path / "out", dtype=torch.float16)
    theirs, ours = (load_file(folder / f"{FILES[0]}.safetensors") for folder in (copied, out))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_scales_of_channels_go_into_the_weights(imported, tmp_path):
    bundle = shutil.copytree(imported, tmp_path / "bundle")
    config = (bundle / "config.yaml").read_text()
    for value in (0.5, 2.0, 1.5):
        config = config.replace("- 0.18215", f"- {value}", 1)
    (bundle / "config.yaml").write_text(config.replace("- 0.0", "- 0.25", 2))
    out = export(bundle, tmp_path / "out")
    theirs, codec = diffusers.AutoencoderKL.from_pretrained(out / "vae"), Bundle.open(bundle).codec()
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = codec.encode_images(images), theirs.encode(images / 127.5 - 1).latent_dist
    assert theirs.config.scaling_factor == 1
    assert_parity(found.mean, expected.mean)
    assert_parity(found.logvar, expected.logvar)
    assert largest_difference(bundle, out) <= 1
    assert "its scale is now 1" in (out / "README.md").read_text()


def test_a_projection_is_left_out_with_a_word(imported, tmp_path):
    source = Bundle.open(imported)
    parts = {name: source.part(name) for name in source.names}
    text = parts["text_encoder"]
    weights = {**text.state, "projection.weight": torch.randn(8, 16)}
    parts["text_encoder"] = Part(spec={**text.spec, "embed_dim": 8}, state=weights)
    settings = {key: value for key, value in source.config.items() if key not in ("parts", "tokenizer")}
    bundle = write_bundle(tmp_path / "bundle", parts=parts, tokenizer=source.tokenizer(), settings=settings)
    out = export(bundle, tmp_path / "out")
    assert "text encoder's projection was left out" in (out / "README.md").read_text()
    assert largest_difference(bundle, out) <= 1


def test_the_shipped_bundle_draws_the_same_pictures_in_diffusers(tmp_path):
    assert largest_difference(SHIPPED, export(SHIPPED, tmp_path / "out")) <= 1


def test_options_without_a_place_are_refused_by_their_names(imported, tmp_path):
    bundle = shutil.copytree(imported, tmp_path / "bundle")
    config = OmegaConf.load(bundle / "config.yaml")
    config.parts.backbone.spec.patch = 2
    config.parts.backbone.spec.transformer.ff_mult = 2
    OmegaConf.save(config, bundle / "config.yaml")
    with pytest.raises(ValueError, match="backbone can't be written") as refused:
        open_export(Bundle.open(bundle), {})
    for option in ("patch=2", "transformer.ff_mult=2"):
        assert option in str(refused.value)


def test_the_names_of_before_2023_are_read(copied, tiny, imported):
    file = copied / f"{FILES[1]}.safetensors"
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, old in early.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    save_file(state, file)
    found, expected = tiny(copied).parts["autoencoder"].state, Bundle.open(imported).part("autoencoder").state
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("folder", "file", "change", "sentence"),
    [
        ("unet", "config", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ("unet", "config", {"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ("unet", "config", {"addition_embed_type": "text"}, "addition_embed_type_num_heads=64, ours has 2"),
        ("unet", "config", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ("unet", "config", {"transformer_layers_per_block": [1, 2]}, "differs between levels"),
        ("unet", "config", {"transformer_layers_per_block": 10**9}, "whole number from 1 to 128"),
        ("unet", "config", {"block_out_channels": [32, 10**12]}, "whole number from 1"),
        ("unet", "config", {"block_out_channels": [32, -64]}, "whole number from 1"),
        ("unet", "config", {"block_out_channels": [32, 96]}, r"shape of .* is .*, wanted"),
        ("unet", "config", {"block_out_channels": [32, 65]}, "not a positive multiple"),
        ("unet", "config", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ("unet", "config", {"up_block_types": ["UpBlock2D"] * 2}, "do not mirror"),
        ("unet", "config", {"layers_per_block": 2}, "missing"),
        ("unet", "config", {"in_channels": 9, "out_channels": 4}, "in_channels and out_channels differ"),
        ("unet", "config", {"cross_attention_dim": 32}, "text encoder's states have 16"),
        ("unet", "config", {"use_linear_projection": True}, "proj_in"),
        ("vae", "config", {"use_quant_conv": False}, "use_quant_conv=False"),
        ("vae", "config", {"latent_channels": 8}, "the autoencoder has 8"),
        ("vae", "config", {"scaling_factor": float("nan")}, "scaling_factor=nan"),
        ("vae", "config", {"latents_mean": [0.0]}, "latents_mean"),
        ("text_encoder", "config", {"hidden_act": "silu"}, "hidden_act='silu'"),
        ("text_encoder", "config", {"num_hidden_layers": 3}, "missing blocks.2"),
        ("text_encoder", "config", {"intermediate_size": 32}, "four times hidden_size"),
        ("scheduler", "scheduler_config", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ("scheduler", "scheduler_config", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler", "scheduler_config", {"beta_end": "x"}, "beta_end='x'"),
        (".", "model_index", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
    ],
)
def test_what_our_networks_lack_is_refused_by_name(copied, tiny, folder, file, change, sentence):
    path = copied / folder / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        tiny(copied)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("unet/diffusion_pytorch_model.safetensors", r"hf download .* --include 'unet/\*'"),
        ("vae/config.json", r"lacks vae/config.json: hf download .* --include 'vae/\*'"),
        ("scheduler/scheduler_config.json", "hf download"),
        ("tokenizer/tokenizer.json", "there is no .*tokenizer.json"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(copied, tiny, missing, sentence):
    (copied / missing).unlink()
    with pytest.raises(ValueError, match=sentence):
        tiny(copied)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 100_000, '"text"'])
def test_a_config_that_is_none_is_refused(copied, tiny, content):
    (copied / "unet" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        tiny(copied)


def test_one_network_is_a_bundle_of_that_part(saved, tiny):
    for name, part in (("unet", "backbone"), ("vae", "autoencoder"), ("text_encoder", "text_encoder")):
        assert list(tiny(saved / name).parts) == [part]
