"""Facts about files that say what they are: their word counts, and a contradiction is refused."""

import diffusers
import open_clip
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.testing import assert_close

from ldm.checkpoints.bundle import Bundle
from ldm.config import CONF
from ldm.construct import construct
from ldm.exchange.exporting import open_export, write_single_file
from ldm.exchange.schedulers import process_fields
from tests.exchange.both import latents_apart
from tests.exchange.conftest import SCHEDULE

EPS = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
V, ZERO_SNR = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}


def alpha_bar(**options) -> torch.Tensor:
    """The table that diffusers makes, in float32 as checkpoints have it."""
    return diffusers.DDIMScheduler(**(SCHEDULE | options)).alphas_cumprod


@pytest.fixture
def read(tiny, state, tmp_path):
    """`read(tensors, header, config)`: what the tiny file is imported as with these beside its weights."""

    def call(tensors=None, header=None, config=None, form="safetensors", **options):
        path = tmp_path / f"one.{form}"
        if config is not None:
            path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
        if form == "ckpt":
            torch.save({"state_dict": state | (tensors or {}), **(header or {})}, path)
        else:
            save_file(state | (tensors or {}), path, metadata=header)
        return tiny(path, **options)

    return call


def process(found) -> dict:
    return process_fields(found.settings["process"])


def compvis(**params) -> dict:
    """A config as CompVis' training reads it."""
    base = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "scale_factor": 0.18215}
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": base | params}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, EPS),
        ({"header": {"modelspec.prediction_type": "v"}}, V),
        ({"header": {"modelspec.prediction_type": "epsilon"}}, EPS),
        ({"header": {"modelspec.architecture": "stable-diffusion-v2-768-v"}}, V),
        ({"header": {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}}, V | ZERO_SNR),
        ({"header": {"ss_v_parameterization": "False", "ss_resolution": "(512, 512)"}}, EPS),
        ({"header": {"ss_base_model_version": "sd_v2_v"}}, V),
        (
            {"header": {"config": '{"prediction_type": "v_prediction", "beta_end": 0.02}'}},
            V | {"beta_end": 0.02},
        ),
        ({"tensors": {"v_pred": torch.zeros(0)}}, V),
        ({"tensors": {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}}, V | ZERO_SNR),
        ({"tensors": {"alphas_cumprod": alpha_bar(rescale_betas_zero_snr=True)}}, V | ZERO_SNR),
        ({"tensors": {"alphas_cumprod": alpha_bar(rescale_betas_zero_snr=True).half()}}, V | ZERO_SNR),
        ({"tensors": {"sqrt_alphas_cumprod": alpha_bar(beta_end=0.02).sqrt()}}, {"beta_end": 0.02}),
        ({"tensors": {"log_one_minus_alphas_cumprod": (1 - alpha_bar()).log()}}, EPS),
        (
            {"tensors": {"betas": torch.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2}},
            {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        ),
        (
            {"tensors": {"betas": torch.linspace(0.0015, 0.0195, 1000)}},
            {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
        ),
        ({"tensors": {"betas": torch.linspace(0.0003, 0.017, 500)}}, {"num_train_timesteps": 500}),
        ({"tensors": {"alphas_cumprod": alpha_bar().bfloat16()}}, EPS),
        ({"config": compvis(parameterization="v")}, V),
        ({"config": compvis(linear_end=0.02)}, EPS | {"beta_schedule": "scaled_linear", "beta_end": 0.02}),
        (
            {
                "form": "ckpt",
                "header": {"hyper_parameters": compvis(parameterization="v")["model"]["params"]},
            },
            V,
        ),
        (
            {"form": "ckpt", "header": {"config": yaml.safe_dump(compvis(parameterization="x0"))}},
            {"prediction_type": "sample"},
        ),
    ],
)
def test_what_a_file_says_of_its_process_is_taken(read, given, expected):
    found = process(read(**given))
    assert {name: found[name] for name in expected} == expected


def test_a_table_that_is_none_of_ours_is_taken_as_it_is(read):
    betas = torch.linspace(0.0001**0.6, 0.02**0.6, 1000) ** (1 / 0.6)
    found = construct(read({"betas": betas}).settings["process"]).schedule.alpha_bar[1:]
    assert_close(found, (1 - betas.double()).cumprod(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ({}, 0.18215),
        ({"tensors": {"scale_factor": torch.tensor(0.2235)}}, 0.2235),
        ({"tensors": {"scale_factor": torch.tensor(0.18215).half()}}, 0.18215),
        ({"config": compvis(scale_factor=0.13025)}, 0.13025),
        ({"header": {"scaling_factor": "0.5"}}, 0.5),
    ],
)
def test_so_is_the_scale_of_its_latents(read, given, scale):
    assert read(**given).settings["latents"]["scale"] == [scale] * 4


def test_so_are_its_size_and_the_state_of_its_text_encoder_and_that_is_said(read):
    found = read(header={"modelspec.resolution": "768x768", "modelspec.prediction_type": "v"})
    assert found.settings["size"] == 768
    assert found.notes == [
        "one.safetensors declares prediction_type=v_prediction (header's modelspec.prediction_type), "
        "size=768 (header's modelspec.resolution), which is used"
    ]
    config = compvis(cond_stage_config={"params": {"layer": "penultimate"}})
    assert read(config=config).parts["text_encoder"].spec["num_layers"] == 1


@pytest.mark.parametrize(
    ("given", "typed", "sentence"),
    [
        (
            {"header": {"modelspec.prediction_type": "v"}},
            {"process"},
            r"declares prediction_type=v_prediction \(header's modelspec.prediction_type\), but process= is "
            r"prediction_type=epsilon: leave process= out, or add declared=ignore",
        ),
        (
            {"tensors": {"ztsnr": torch.zeros(0)}},
            {"process"},
            r"rescale_betas_zero_snr=True .*process= is rescale_betas_zero_snr=False, prediction",
        ),
        (
            {"tensors": {"scale_factor": torch.tensor(0.2235)}},
            {"latent_scale"},
            r"declares latent_scale=0.2235 \(tensor scale_factor\), but latent_scale= is 0.18215",
        ),
        (
            {"tensors": {"v_pred": torch.zeros(0)}, "header": {"modelspec.prediction_type": "epsilon"}},
            set(),
            "contradicts itself: prediction_type is 'epsilon' in its header's modelspec",
        ),
        (
            {"tensors": {"ztsnr": torch.zeros(0)}, "header": {"modelspec.prediction_type": "epsilon"}},
            set(),
            "contradicts itself: .* a prediction of the noise is useless at pure noise",
        ),
        (
            {"tensors": {"betas": torch.linspace(0.001, 0.01, 1000), "alphas_cumprod": alpha_bar()}},
            set(),
            "its alphas_cumprod and its betas are of different noise tables",
        ),
        (
            {"tensors": {"edm_vpred.sigma_max": torch.ones(())}},
            set(),
            "edm_vpred.sigma_max declares EDM's noise",
        ),
        ({"tensors": {"sigma_max": torch.ones(())}}, set(), "sigma_max declares EDM's noise levels"),
        ({"tensors": {"betas": torch.ones(1000)}}, set(), "betas is no noise table"),
        (
            {"header": {"modelspec.prediction_type": "flow"}},
            set(),
            "has prediction_type='flow', expected one of epsilon",
        ),
        ({"config": compvis(unet_config={"params": {"num_heads": 8}})}, set(), "num_heads=8 .* is 2: choose"),
        ({"config": compvis(beta_schedule="sqrt")}, set(), "beta_schedule='sqrt' is not covered"),
    ],
)
def test_a_contradiction_is_refused_with_both_values(read, given, typed, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(**given, typed=typed)


def test_a_file_that_is_wrong_is_overruled(read):
    found = read(
        {"v_pred": torch.zeros(0), "scale_factor": torch.tensor(0.5)}, typed={"process"}, trusted=False
    )
    assert process(found)["prediction_type"] == "epsilon"
    assert found.settings["latents"]["scale"] == [0.18215] * 4


def test_a_folder_is_held_against_what_was_typed(saved, copied, tiny):
    assert tiny(saved, typed={"process", "latent_scale"}).settings == tiny(saved).settings
    text = (copied / "vae" / "config.json").read_text()
    (copied / "vae" / "config.json").write_text(
        text.replace('"scaling_factor": 0.18215', '"scaling_factor": 0.5')
    )
    with pytest.raises(
        ValueError, match=r"declares latent_scale=0.5 \(its autoencoder\), but latent_scale= is 0.18"
    ):
        tiny(copied, typed={"latent_scale"})
    assert tiny(copied).settings["latents"]["scale"] == [0.5] * 4
    assert tiny(copied, typed={"latent_scale"}, trusted=False).settings["latents"]["scale"] == [0.18215] * 4


def test_so_is_a_file_that_carries_its_own_configs(save_pipeline, bundle_of, tiny, tmp_path):
    v = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type="v_prediction")
    opened = open_export(Bundle.open(bundle_of(save_pipeline(tmp_path, scheduler=v))), {})
    file = write_single_file(opened, tmp_path / "v.safetensors", dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"declares prediction_type=v_prediction \(its scheduler\), but process= is pr"
    ):
        tiny(file, typed={"process"})
    assert process(tiny(file))["prediction_type"] == "v_prediction"
    assert process(tiny(file, typed={"process"}, trusted=False))["prediction_type"] == "epsilon"


def test_a_typed_process_that_diffusers_lacks_goes_with_a_file_that_says_nothing(read):
    """And not with one that says another."""
    edm = OmegaConf.to_container(OmegaConf.load(CONF / "process" / "edm.yaml"), resolve=True)
    found = read(typed={"process"}, process=edm)
    assert found.settings["process"] == edm
    with pytest.raises(ValueError, match=r"declares .*beta_start=.*process= is ldm\.diffusion\.schedules"):
        read(config=compvis(), typed={"process"}, process=edm)


def test_a_folder_with_betas_of_its_own_is_read(save_pipeline, tiny, tmp_path):
    betas = (torch.linspace(0.0001**0.6, 0.02**0.6, 1000) ** (1 / 0.6)).tolist()
    folder = save_pipeline(
        tmp_path, scheduler=diffusers.DDIMScheduler(trained_betas=betas, clip_sample=False)
    )
    ours = construct(tiny(folder).settings["process"]).schedule.alpha_bar[1:]
    assert_close(
        diffusers.DDIMScheduler(trained_betas=betas).alphas_cumprod.double(), ours, atol=2e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("header", "scheduler"),
    [
        ({"modelspec.prediction_type": "v"}, {"set_alpha_to_one": False}),
        (
            {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"},
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        ),
    ],
)
def test_a_network_of_v_in_one_file_samples_as_in_diffusers(
    state, bundle_of, save_pipeline, tmp_path, header, scheduler
):
    save_file(state, tmp_path / "v.safetensors", metadata=header)
    theirs = diffusers.DDIMScheduler(
        **SCHEDULE, **scheduler, prediction_type="v_prediction", clip_sample=False
    )
    folder = save_pipeline(tmp_path, scheduler=theirs)
    assert latents_apart(bundle_of(tmp_path / "v.safetensors"), folder) < 1e-4


@pytest.fixture
def second(state):
    """The tiny file with a text encoder of open_clip, as Stable Diffusion 2.x has it, and that encoder."""
    text = {"context_length": 16, "vocab_size": 640, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("visual.")}
    others = {name: tensor for name, tensor in state.items() if not name.startswith("cond_stage_model.")}
    return others | {f"cond_stage_model.model.{name}": tensor for name, tensor in own.items()}, model


def test_stable_diffusion_2_reads_the_state_before_the_last_layer(second, tiny, tokenizer, tmp_path):
    tensors, model = second
    save_file(tensors, tmp_path / "two.safetensors", metadata={"modelspec.prediction_type": "v"})
    part = tiny(tmp_path / "two.safetensors").parts["text_encoder"]
    ours, tokens = construct(part.spec).eval(), tokenizer.encode(["a cat", "red apple"])
    ours.load_state_dict(dict(part.state))
    for block in ours.blocks:
        block.mlp.activation = torch.nn.functional.gelu  # the tiny architecture names quick_gelu
    with torch.no_grad():
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.transformer.resblocks[0](x, attn_mask=model.attn_mask)
        assert_close(ours(tokens).states, model.ln_final(x), atol=1e-5, rtol=0)


def test_what_stable_diffusion_2_predicts_is_not_guessed(second, tiny, tmp_path):
    save_file(second[0], tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"2\.x and does not declare its prediction: .* process=sd2_v"):
        tiny(tmp_path / "two.safetensors")
    assert process(tiny(tmp_path / "two.safetensors", typed={"process"}))["prediction_type"] == "epsilon"
