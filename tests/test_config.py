"""Facts about what the command line refuses, and about the yaml files of conf/."""

import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from torch import nn

from ldm import UserError, config
from ldm.checkpoints.provenance import command as recorded_command
from ldm.config import (
    CONF,
    build,
    check,
    check_group,
    every,
    key_paths,
    leave_out,
    options,
    parsed,
    plain,
    without_null,
)
from ldm.construct import CONFIG_DIR, PACKAGES, construct
from ldm.distributed.launch import launch
from ldm.loggers.tensorboard_log import tensorboard_logger
from ldm.planning.checks import check_steps
from ldm.stages.optim import check_optimizer

COMMANDS = ("train", "sample", "evaluate")
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NOT_ALONE = {
    "experiment",
    "grid",
    "hydra",
    "sweep",
    "image_tokenizer",
    "codes",
    "perceptual",
    "equivariance",
    "term",
    "text",
    "captions",
}  # added to others, or Hydra's
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_ALONE)
CODES = ["+codes=trained", "codes.image_tokenizer=runs/x"]  # no tokenizer of pictures ships
NEEDED = {
    "model=autoregressive": [*CODES, "model.stage.loss=x"],
    "model=discrete_diffusion": [*CODES, "backbone=codes_tiny"],
    "model=two_level": CODES,
    "model=image_tokenizer": ["+image_tokenizer=vqgan_f8_tiny"],
    "model=image_tokenizer_gan": ["+image_tokenizer=vqgan_f8_tiny"],
}
NETWORKS = ("backbone", "autoencoder", "text_encoder", "image_encoder")


@cache
def composed(command: str, *overrides: str):
    """A command's config. Read it, never write to it."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(command, overrides=list(overrides))


@pytest.mark.parametrize(
    ("command", "argument", "sentence"),
    [
        ("sample", "+grid=karas", "no grid 'karas', did you mean 'karras'?"),
        ("train", "optimzer.lr=1e-3", "no key 'optimzer.lr', did you mean 'optimizer.lr'?"),
        ("train", "optimizer.lrr=1e-3", "no key 'optimizer.lrr', did you mean 'optimizer.lr'?"),
        ("train", "stpes=5", "no key 'stpes', did you mean 'steps'?"),
        ("sample", "promts=[x]", "no key 'promts', did you mean 'prompts'?"),
        ("evaluate", "bundel=x", "no key 'bundel', did you mean 'bundle'?"),
        ("train", "backbonee=unet_tiny", "no key 'backbonee', did you mean 'backbone'?"),
        ("train", "backbone=unet_tyni", "no backbone 'unet_tyni', did you mean 'unet_tiny'?"),
        ("train", "+experiment=emojj", "no experiment 'emojj', did you mean 'emoji'?"),
        ("train", "+experimnt=emoji", "no key 'experimnt', did you mean 'experiment'?"),
        ("train", "experiment=emoji", r"write \+experiment=emoji, with a plus"),
        ("train", "+lr=0.1", "no key 'lr'"),
        ("train", "+optimizr.betas=[0,0]", "no key 'optimizr.betas', did you mean 'optimizer.betas'?"),
    ],
)
def test_what_is_misspelt_is_answered_with_the_nearest_name(command, argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(command, [argument])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["+experiment=flickr_cpu_vae", "+perceptual=efficientnet_lite0"],
            "+perceptual=efficientnet_lite0: perceptual would be chosen twice: write "
            "perceptual=efficientnet_lite0, without the plus",
        ),
        (["+model=clip"], "+model=clip: model would be chosen twice: write model=clip, without the plus"),
        (
            ["+experiment=emoji", "+experiment=emoji_vae"],
            "+experiment=emoji +experiment=emoji_vae: experiment would be chosen twice: keep one of them",
        ),
        (["+term=repa", "+term=repa"], "+term=repa +term=repa: term would be chosen twice: keep one of them"),
    ],
)
def test_a_group_that_is_chosen_twice_is_answered_with_what_to_type(arguments, sentence):
    with pytest.raises(UserError) as refused:
        check("train", arguments)
    assert str(refused.value) == sentence
    check("train", ["+experiment=flickr_cpu_vae", "perceptual=efficientnet_lite0"])


def test_a_group_that_a_command_would_not_look_at_is_refused():
    check("sample", ["+grid=karras", "grid.rho=5"])
    with pytest.raises(
        ValueError, match=r"grid has no place in ldm\.train, only in sample, evaluate, export"
    ):
        check("train", ["+grid=karras"])


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("steps=many", "steps=many is str, expected int like 300"),
        ("steps=1.5", "steps=1.5 is float, expected int"),
        ("batch_size=true", "batch_size=True is bool, expected int"),
        ("optimizer.lr=fast", "optimizer.lr=fast is str, expected float"),
        ("optimizer.fused=1", "optimizer.fused=1 is int, expected bool"),
        ("name=[a]", r"name=\['a'\] is list, expected str"),
        ("runs=null", "runs=null is empty, expected text like 'runs'"),
        ("batch_size={a: 1}", "is dict, expected int"),
        ("steps=5,6", "steps=5,6 lists several values"),
        ("~steps", "steps can't be removed"),
        ("model.stage=null", "model.stage can't be left out: the command reads it"),
        ("~model.datamodule", "model.datamodule can't be left out: the command reads it"),
        ("optimizer=null", "optimizer can't be left out: the command reads it; there are: adamw"),
        ("~backbone", "backbone can't be left out: the command reads it; there are: "),
    ],
)
def test_a_value_of_another_type_is_refused(argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        check("train", [argument])


ADAMW = {"_target_": "torch.optim.AdamW", "_partial_": True}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 4}, "data.size=4 must be at least 8 pixels"),
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"num_workers": -1}, "data.num_workers=-1 must be at least 0"),
        ({"seed": -1}, "data.seed=-1 must lie between 0 and"),
        ({"seed": 2**63}, "must lie between 0 and"),
    ],
)
@pytest.mark.parametrize("target", ["datamodule.PictureData", "streaming.StreamingPictureData"])
def test_a_data_set_refuses_options_out_of_range(target, options, sentence):
    node = {"_target_": f"ldm.data.{target}", "root": "absent-{0..1}.tar", "size": 16, "batch_size": 4}
    with pytest.raises(UserError, match=sentence):
        build(node | options)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), None])
def test_an_optimizer_refuses_a_learning_rate_out_of_range(rate):
    with pytest.raises(UserError, match=f"optimizer.lr={rate} must be a finite number above 0"):
        check_optimizer(build(ADAMW | {"lr": rate}), lambda step: 1.0)


@pytest.mark.parametrize("schedule", ["warmup_constant", "warmup_cosine"])
def test_a_schedule_refuses_a_warmup_below_0(schedule):
    more = {"steps": 9} if schedule == "warmup_cosine" else {}
    decay = {"_target_": f"ldm.stages.optim.{schedule}", "_partial_": True, "warmup": -1, **more}
    with pytest.raises(UserError, match=r"decay\.warmup=-1 must be at least 0"):
        check_optimizer(build(ADAMW | {"lr": 1e-3}), build(decay))


@pytest.mark.parametrize("steps", [0, -3, 10**11, 1.5, None])
def test_a_training_refuses_a_number_of_steps_out_of_range(steps):
    with pytest.raises(UserError, match=f"steps={steps} must lie between 1 and 10000000 and be a whole"):
        check_steps({"max_steps": steps})


@pytest.mark.parametrize("patience", [0.0, float("inf"), float("nan")])
def test_who_waits_refuses_to_wait_forever_or_not_at_all(patience, tmp_path):
    sentence = f"patience={patience} must be a finite number of seconds, at least"
    with pytest.raises(UserError, match=f"^logger.{sentence} 1$"):
        tensorboard_logger(folder=str(tmp_path), patience=patience)
    with pytest.raises(UserError, match=f"^{sentence} 2$"):
        launch(["false"], 2, patience=patience)
    assert list(tmp_path.iterdir()) == []


def test_who_watches_ranks_waits_for_longer_than_the_second_between_two_looks():
    with pytest.raises(UserError, match=r"^patience=1.0 must be a finite number of seconds, at least 2$"):
        launch(["true"], 2, patience=1.0)


def test_the_exponential_moving_average_refuses_a_decay_out_of_range():
    with pytest.raises(UserError, match=r"decay=1.0 must lie in \[0, 1\)"):
        build({"_target_": "ldm.callbacks.ema.EMA", "decay": 1.0})


GUIDANCES = ("cfg", "cfg_rescale", "autoguidance", "apg")


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_a_guidance_refuses_a_scale_that_is_no_finite_number(name, scale):
    guidance = construct({"_target_": f"ldm.diffusion.guidance.{name}", "_partial_": True, "scale": scale})
    with pytest.raises(UserError, match=f"scale={scale} must be a finite number"):
        guidance(lambda x, t: x, lambda x, t: (x, x))


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("prompts=a,b", "lists several values: quote a text with commas"),
        ("bundle=null", "bundle=null is empty"),
        ("+sampler=dimm", "no sampler 'dimm', did you mean 'ddim'?"),
    ],
)
def test_options_of_sampling_are_checked_too(argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        check("sample", [argument])


@pytest.mark.parametrize("argument", ["steps", "prompts=[a", 'prompts=["a]', "a=b=c=[", "steps=(1"])
def test_a_line_that_is_no_override_is_refused(argument):
    with pytest.raises((ValueError, HydraException)):
        check("sample", [argument])


@pytest.mark.parametrize(
    "arguments",
    [
        ["+experiment=emoji", "steps=14000", "optimizer.lr=1e-4"],
        ["backbone=unet_base", "backbone.transformer.depth=2", "backbone.transformer.num_heads=null"],
        ["~callbacks.ema", "trainer.precision=32", "data.root=/some/where"],
        ["model.stage.decay.warmup=0", "steps=${batch_size}"],
        ["callbacks.ema.decay=0"],
        ["+trainer.limit_val_batches=2", "hydra.job.name=x"],
    ],
)
def test_what_is_right_passes(arguments):
    check("train", arguments)


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("callbacks.ema=null", {"averages", "gradients", "pace", "saving", "target", "report"}),
        ("~callbacks.ema", {"averages", "gradients", "pace", "saving", "target", "report"}),
        *((argument, set()) for argument in ("callbacks={}", "callbacks=null", "~callbacks")),
    ],
)
def test_a_callback_that_is_null_is_left_out(typed, left):
    check("train", [without_null(typed)])
    config = composed("train", without_null(typed))
    leave_out(config)
    assert set(config.callbacks) == left


@pytest.mark.parametrize("typed", ["logger=null", "~logger", "logger={}", "logger=none"])
def test_a_logger_that_is_null_is_left_out(typed):
    config = composed("train", without_null(typed))
    leave_out(config)
    assert not config.logger
    metrics = composed("evaluate", "metric=[fid,kid]", "metric.kid=null")
    leave_out(metrics)
    assert set(metrics.metric) == {"fid"}


def test_null_is_no_object_unless_the_constructor_takes_it():
    process = plain(composed("train").process) | {"prediction": None}
    with pytest.raises(ValueError, match="can't be called with prediction='None': it must be "):
        build(process)


def test_a_list_of_bundles_is_evaluated_and_never_sampled():
    check("evaluate", ["bundle=[runs/a,runs/b]"])
    with pytest.raises(ValueError, match="is list, expected str like shipped"):
        check("sample", ["bundle=[runs/a,runs/b]"])
    with pytest.raises(ValueError, match="is list, expected str"):
        check("evaluate", ["out=[a,b]"])


def test_several_values_pass_in_a_sweep():
    check("train", ["steps=5,6"], sweep=True)


@cache
def on_meta(node: str) -> nn.Module:
    """The network of a node, as json, on the meta device: most experiments share most of theirs."""
    with torch.device("meta"):
        return build(json.loads(node))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_networks_build(experiment):
    resolved = plain(composed("train", f"+experiment={experiment}"))
    assert resolved["name"] == experiment
    assert {"stage", "datamodule"} <= resolved["model"].keys()
    own = [name for name in (*NETWORKS, "image_tokenizer") if name in resolved]
    for name in own:
        assert sum(p.numel() for p in on_meta(json.dumps(resolved[name])).parameters()) > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_fits_the_networks_that_its_codec_comes_from(experiment):
    own = plain(composed("train", f"+experiment={experiment}"))
    net = on_meta(json.dumps(own["backbone"]))
    for part, path in own["codec"].items():
        if not path.startswith("runs/"):
            continue
        first = plain(composed("train", f"+experiment={Path(path).name}"))
        ours, theirs = (node[part] | {"checkpointing": None} for node in (own, first))
        assert ours == theirs
        assert first["data"]["root"] == own["data"]["root"]
        given, option = {"autoencoder": ("latent_channels",) * 2, "text_encoder": ("width", "context_dim")}[
            part
        ]
        assert theirs[given] == getattr(net, option, theirs[given])  # a network on codes reads neither


@pytest.mark.parametrize("experiment", ["flickr_cpu", "flickr_dit", "flickr_base", "shapes", "demo"])
def test_a_pretrained_text_encoder_fits_every_backbone_of_our_own(experiment):
    own = plain(composed("train", f"+experiment={experiment}", "+text=minilm"))
    assert own["codec"]["text_encoder"] == "bundles/minilm"
    published = {"vocab_size": 30522, "context_length": 64, "width": 384, "num_layers": 6, "num_heads": 12}
    assert own["text_encoder"] == {"_target_": "ldm.models.text_encoders.SentenceEncoder", **published}
    assert on_meta(json.dumps(own["backbone"])).context_dim == 384


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if f"{name}_codes" in EXPERIMENTS])
def test_an_experiment_on_codes_fits_the_tokenizer_that_they_come_from(experiment):
    own = plain(composed("train", f"+experiment={experiment}"))
    assert own["codes"]["image_tokenizer"] == f"runs/{experiment}_codes"
    first = plain(composed("train", f"+experiment={experiment}_codes"))
    assert first["data"] == own["data"] | {"batch_size": first["data"]["batch_size"]}
    net, tokenizer = (on_meta(json.dumps(x)) for x in (own["backbone"], first["image_tokenizer"]))
    if hasattr(net, "grid"):
        assert (net.grid, net.num_codes) == (tokenizer.grid, tokenizer.num_codes)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_is_and_how_long_it_takes(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    comment = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"# {experiment}: " in comment
    assert "minute" in comment or "hour" in comment


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group):
    command = "evaluate" if group in ("protocol", "metric") else "train"
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert options
    for option in options:
        argument = f"{group}=[{option}]" if group == "metric" else f"{group}={option}"
        check_group(parsed(argument), command)
        plain(composed(command, argument, *NEEDED.get(argument, [])))
    composed(command, *every(command), argument)  # beside every metric


@pytest.mark.parametrize("stage", ["autoencoder", "image_tokenizer"])
def test_a_perceptual_term_is_added_to_a_stage_as_it_stands_in_that_with_an_adversary(stage):
    more = NEEDED.get(f"model={stage}", [])
    check("train", arguments := [f"model={stage}", "+perceptual=efficientnet_lite0", "data.size=32", *more])
    added = plain(composed("train", *arguments))["model"]["stage"]
    adversarial = plain(composed("train", f"model={stage}_gan", "data.size=32", *more))["model"]["stage"]
    assert added["perceptual"]["size"] == 32
    assert added == {k: v for k, v in adversarial.items() if not k.startswith("discriminator")}
    with pytest.raises(UserError, match=r"perceptual has no place in ldm\.sample, only in train"):
        check("sample", ["+perceptual=efficientnet_lite0"])


@pytest.mark.parametrize("group", NETWORKS)
def test_every_network_builds_on_the_meta_device(group):
    for path in (CONF / group).glob("*.yaml"):
        node = plain(composed("train", f"{group}={path.stem}"))[group]
        with torch.device("meta"):
            assert all(p.is_meta for p in construct(node).parameters())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_defaults_of_every_command_resolve_and_pass_their_own_check(command):
    chosen = composed(command)
    plain(chosen)
    assert set(key_paths(chosen))


def test_a_folder_of_ones_own_adds_options_to_the_groups(tmp_path, monkeypatch):
    (tmp_path / "own" / "sampler").mkdir(parents=True)
    (tmp_path / "own" / "sampler" / "mine.yaml").write_text("steps: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIG_DIR, "own")
    assert "mine" in options("sampler")
    check("sample", ["+sampler=mine"])


def test_a_folder_of_ones_own_that_is_not_there_is_refused(command, monkeypatch):
    monkeypatch.setenv(CONFIG_DIR, "")
    ended = command("ldm.evaluate", "out=x", "--config-dir=nowhere", "bundle=shipped", status=1)
    assert re.fullmatch(r"--config-dir=\S+/nowhere: there is no such folder", ended.sentence)


def test_the_config_folder_does_not_hang_on_the_working_directory():
    assert CONF.is_absolute()
    assert Path(config.__file__).parents[1] / "conf" == CONF


@pytest.mark.parametrize(
    "path",
    [
        "/x/a#b",
        "/x/a{b}",
        "/x/ü",
        "/x/it's",
        "/x/a'",
        "./a(1)",
        "../a=b",
        "~/a#",
        "/a,b#",
        "/a\\'#\\",
        "/a b",
    ],
)
def test_a_path_reaches_the_config_whatever_hydra_makes_of_its_characters(path, monkeypatch):
    seen = []
    command = config.entry("sample")(lambda options: seen.append(options.out))
    monkeypatch.setattr(sys, "argv", ["ldm.sample", f"out={path}"])
    command()
    assert seen == [path]


@pytest.mark.parametrize(
    ("argument", "typed"),
    [
        ("out=pictures/ü", "\"out='pictures/ü'\""),
        ("out=a#b c", "\"out='a#b c'\""),
        ("out=a$#", "'out='\"'\"'a$#'\"'\"''"),
    ],
)
def test_another_value_that_hydra_can_not_read_is_refused_with_what_to_type(argument, typed, monkeypatch):
    with pytest.raises(ValueError, match="can't be read, as its value needs quotes: type ") as refusal:
        check("sample", [argument])
    assert str(refusal.value).endswith(typed)
    (typed_argument,) = shlex.split(typed)
    check("sample", [typed_argument])


def test_what_is_no_key_and_value_is_refused():
    with pytest.raises(ValueError, match="'red apple' is not of the form key=value"):
        check("sample", ["red apple"])


def test_a_third_of_the_demos_timesteps_are_where_its_captions_decide_the_picture():
    """Below t = 0.9 a noisy latent of 2,048 values identifies its emoji; at shift 3 a seventh lie above."""
    process = build(composed("train", "+experiment=demo").process)
    t = process.times((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    assert (t > 0.9).double().mean() >= 1 / 3


def test_the_recorded_command_names_the_users_own_config_folder_and_packages(monkeypatch):
    monkeypatch.delenv(PACKAGES, raising=False)
    monkeypatch.setenv(CONFIG_DIR, "/own")
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "-m", "ldm.train", "steps=4"])
    assert recorded_command() == "python -m ldm.train steps=4 --config-dir=/own"
    typed = ["/bin/python", "-m", "ldm.train", "--config-dir", "own", "steps=4"]
    monkeypatch.setattr(sys, "orig_argv", typed)
    assert recorded_command() == " ".join(["python", *typed[1:]])
    monkeypatch.delenv(CONFIG_DIR)
    monkeypatch.setattr(sys, "orig_argv", typed[:3])
    assert recorded_command() == "python -m ldm.train"
    monkeypatch.setenv(PACKAGES, "my_systems")
    assert recorded_command() == "LDM_PACKAGES=my_systems python -m ldm.train"
