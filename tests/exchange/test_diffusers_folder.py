"""Facts about diffusers folders: the same numbers there and here, the same bytes after a round trip."""

import json
import shutil

import diffusers
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.testing import assert_close
from transformers import CLIPTextModel

from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.config import CONF
from ldm.exchange.diffusers import from_configs
from ldm.exchange.exporting import open_export, write_diffusers
from ldm.exchange.importing import locate
from ldm.exchange.keymap import shapes
from ldm.exchange.schedulers import process_spec, sampling_spec, scheduler_config
from ldm.generators.diffusion_bundle import load_codec
from ldm.io.fields import Fields
from tests.exchange.both import FILES, PROMPTS, export, largest_difference, outline
from tests.exchange.stable_diffusion import STABLE_DIFFUSION


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_stable_diffusions_published_configs_are_our_presets():
    told = from_configs({name: Fields(name, values) for name, values in STABLE_DIFFUSION.items()})
    presets = {"backbone": "unet_sd15", "autoencoder": "kl_f8", "text_encoder": "sd15", "process": "sd15"}
    for group, name in presets.items():
        preset = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=True)
        if group == "process":
            assert told.process == preset
        else:
            assert shapes(outline(getattr(told, group))) == shapes(outline(preset))
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


def test_a_class_that_ours_lacks_becomes_ddim_and_that_is_said(copied, tiny):
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "LMSDiscreteScheduler"}))
    found = tiny(copied)
    assert found.left_out == ["the steps of a LMSDiscreteScheduler"]
    assert found.settings["sampler"]["method"]["_target_"] == "ldm.diffusion.samplers.ddim"


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
    theirs = diffusers.AutoencoderKL.from_pretrained(out / "vae")
    codec = load_codec(autoencoder=str(bundle), text_encoder=str(bundle))
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


def test_options_without_a_place_are_refused_by_their_names(imported, tmp_path):
    bundle = shutil.copytree(imported, tmp_path / "bundle")
    config = OmegaConf.load(bundle / "config.yaml")
    config.parts.backbone.spec.patch = 2
    config.parts.backbone.spec.transformer.ff_mult = 2
    config.parts.backbone.spec.transformer.qk_norm = True
    OmegaConf.save(config, bundle / "config.yaml")
    with pytest.raises(ValueError, match="backbone can't be written") as refused:
        open_export(Bundle.open(bundle), {})
    for option in ("patch=2", "transformer.ff_mult=2", "transformer.qk_norm=True"):
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
        ("unet", "config", {"addition_embed_type": "text"}, r"addition_embed_type_num_heads=64 \(only 2\)"),
        ("unet", "config", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        (
            "unet",
            "config",
            {"transformer_layers_per_block": [1, 2]},
            r"=\[1, 2\] \(only \[1, 1\]\)",
        ),
        ("unet", "config", {"transformer_layers_per_block": 10**9}, "whole number from 1 to 128"),
        ("unet", "config", {"block_out_channels": [32, 10**12]}, "whole number from 1"),
        ("unet", "config", {"block_out_channels": [32, -64]}, "whole number from 1"),
        ("unet", "config", {"block_out_channels": [32, 96]}, r"shape of .* is .*, wanted"),
        ("unet", "config", {"block_out_channels": [32, 65]}, "not a positive multiple"),
        ("unet", "config", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        (
            "unet",
            "config",
            {"up_block_types": ["UpBlock2D"] * 2},
            r"up_block_types=.* \(only",
        ),
        ("unet", "config", {"attention_head_dim": [2, 8]}, r"attention_head_dim=\[2, 8\] \(only \[2, 4\]\)"),
        ("unet", "config", {"norm_num_groups": None}, "norm_num_groups=None"),
        ("unet", "config", {"layers_per_block": 2}, "missing"),
        (
            "unet",
            "config",
            {"in_channels": 9, "out_channels": 4},
            "9 input channels, ours has 4: it is an inpainting model",
        ),
        (
            "unet",
            "config",
            {"in_channels": 8},
            "8 input channels, ours has 4: it is an InstructPix2Pix model",
        ),
        ("unet", "config", {"cross_attention_dim": 32}, "text encoder's width 16"),
        ("unet", "config", {"use_linear_projection": True}, "proj_in"),
        ("vae", "config", {"use_quant_conv": False}, "use_quant_conv=False"),
        ("vae", "config", {"latent_channels": 8}, "the autoencoder has 8"),
        ("vae", "config", {"scaling_factor": float("nan")}, "scaling_factor='NaN' must be a number"),
        ("vae", "config", {"latents_mean": [0.0]}, "latents_mean"),
        ("vae", "config", {"up_block_types": ["UpBlock2D"] * 2}, "up_block_types="),
        ("text_encoder", "config", {"hidden_act": "silu"}, "hidden_act='silu'"),
        ("text_encoder", "config", {"num_hidden_layers": 3}, "missing blocks.2"),
        ("text_encoder", "config", {"intermediate_size": 32}, "four times hidden_size"),
        ("scheduler", "scheduler_config", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ("scheduler", "scheduler_config", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler", "scheduler_config", {"beta_end": "x"}, "beta_end='x'"),
        ("scheduler", "scheduler_config", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        (
            ".",
            "model_index",
            {"_class_name": "StableDiffusionXLPipeline"},
            "XLPipeline.: it is Stable Diffusion XL",
        ),
        (
            ".",
            "model_index",
            {"_class_name": "StableDiffusion3Pipeline"},
            "it is Stable Diffusion 3, a transf",
        ),
        (".", "model_index", {"_class_name": "FluxPipeline"}, "it is Flux"),
        (".", "model_index", {"_class_name": "StableDiffusionInpaintPipeline"}, "it is an inpainting model"),
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


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"transformer_layers_per_block": 128, "layers_per_block": 128}),
        ("vae", {"layers_per_block": 128, "block_out_channels": [16, 131072]}),
        ("text_encoder", {"num_hidden_layers": 128}),
    ],
)
def test_a_config_of_far_more_weights_than_the_file_is_not_built_to_its_end(copied, tiny, part, change):
    built = []
    path = copied / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    hook = register_module_parameter_registration_hook(lambda module, name, weight: built.append(name))
    try:
        with pytest.raises(
            ValueError, match=rf"{part}/.*: the network has more than .* weights, far more than the file"
        ):
            tiny(copied)
    finally:
        hook.remove()
    assert len(built) < 2000
