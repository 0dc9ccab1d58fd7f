"""Facts about what the command line refuses, and about the yaml files of conf/."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ldm import config
from ldm.commands.limits import LIMITS, check_limit
from ldm.config import CONF, build, check, key_paths, plain
from ldm.construct import construct

COMMANDS = ("train", "sample", "evaluate")
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NOT_ALONE = {"experiment", "grid", "hydra", "sweep"}  # added to others, or Hydra's own
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_ALONE)
NETWORKS = ("backbone", "autoencoder", "text_encoder", "image_encoder")


def composed(command: str, *overrides: str):
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
        ("steps=0", "steps=0 must lie between 1 and 10000000"),
        ("steps=-3", "steps=-3 must lie between"),
        ("steps=99999999999", "steps=99999999999 must lie between"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("seed=-1", "seed=-1 must lie between 0 and"),
        ("seed=99999999999999999999", "must lie between 0 and"),
        ("optimizer.lr=0", "optimizer.lr=0 must be a finite number above 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan must be a finite number above 0"),
        ("optimizer.lr=inf", "optimizer.lr=inf must be a finite number above 0"),
        ("data.num_workers=-1", "data.num_workers=-1 must be at least 0"),
        ("data.size=4", "data.size=4 must be at least 8 pixels"),
        ("callbacks.ema.decay=1", "callbacks.ema.decay=1 must lie in"),
        ("model.stage.caption_drop=1.5", "caption_drop=1.5 must lie in"),
        ("steps=5,6", "steps=5,6 lists several values"),
        ("~steps", "steps can't be removed"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        check("train", [argument])


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("steps=x", "steps=x must lie between"),
        ("scale=inf", "scale=inf must be a finite number"),
        ("scale=strong", "scale=strong must be a finite number"),
        ("num_pictures=0", "num_pictures=0 must be at least 1"),
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
        ["+trainer.limit_val_batches=2", "hydra.job.name=x"],
    ],
)
def test_what_is_right_passes(arguments):
    check("train", arguments)


def test_a_yaml_out_of_range_is_refused_as_a_value_on_the_command_line_is(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CONF", Path(shutil.copytree(CONF, tmp_path / "conf")))
    (config.CONF / "experiment" / "hasty.yaml").write_text("# @package _global_\noptimizer: {lr: -1.0}\n")
    with pytest.raises(ValueError, match=r"optimizer\.lr=-1\.0 must be a finite number above 0"):
        check("train", ["+experiment=hasty"])


def test_several_values_pass_in_a_sweep():
    check("train", ["steps=5,6"], sweep=True)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_networks_build(experiment):
    chosen = composed("train", f"+experiment={experiment}")
    resolved = plain(chosen)
    assert resolved["name"] == experiment
    assert {"stage", "datamodule"} <= resolved["model"].keys()
    with torch.device("meta"):
        for name in NETWORKS:
            assert sum(p.numel() for p in build(chosen[name]).parameters()) > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_fits_the_networks_that_its_codec_comes_from(experiment):
    own = plain(composed("train", f"+experiment={experiment}"))
    with torch.device("meta"):
        net = build(own["backbone"])
    for part, path in own["codec"].items():
        if not path.startswith("runs/"):
            continue
        first = plain(composed("train", f"+experiment={Path(path).name}"))
        ours, theirs = (node[part] | {"checkpointing": None} for node in (own, first))
        assert ours == theirs
        assert first["data"]["root"] == own["data"]["root"]
        given = {"autoencoder": "latent_channels", "text_encoder": "width"}[part]
        assert theirs[given] == {"autoencoder": net.latent_channels, "text_encoder": net.context_dim}[part]


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
        check(command, [argument])
        plain(composed(command, argument))


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
    keys = set(key_paths(chosen))
    assert keys
    for name, (rule, _) in LIMITS.items():
        value = OmegaConf.select(chosen, name)
        if isinstance(value, int | float):
            assert rule(value), name


def test_each_limit_is_that_of_a_key_that_some_command_has():
    everywhere = [composed("train", "logger=wandb"), *map(composed, ("sample", "evaluate", "export"))]
    assert LIMITS.keys() <= {key for each in everywhere for key in key_paths(each)}


def test_a_limit_is_of_a_whole_key_not_of_every_key_with_its_last_name():
    check_limit("callbacks.sheet.size", 2)
    check_limit("callbacks.other.decay", 1.5)


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


def test_a_quarter_of_the_demos_timesteps_are_where_its_captions_decide_the_picture():
    """Below t = 0.9 a noisy latent of 2,048 values identifies its emoji; at shift 3 a seventh lie above."""
    process = build(composed("train", "+experiment=demo").process)
    t = process.times((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    assert (t > 0.9).double().mean() >= 0.25
