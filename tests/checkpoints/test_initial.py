"""A training that starts from a bundle keeps the process and the codec that its weights were trained with."""

import shutil

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ldm.checkpoints.resuming import follow_init
from ldm.config import CONF, build


@pytest.fixture
def zero_snr(bundle_path, tmp_path):
    """A bundle of v-prediction on a table that ends in pure noise."""
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    config = yaml.safe_load((path / "config.yaml").read_text())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        process = compose("train", ["process=zero_snr"]).process
    config["process"] = OmegaConf.to_container(process, resolve=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def followed(*typed: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(typed))
    return config, list(follow_init(config, typed))


@pytest.mark.parametrize("experiment", ["+experiment=sd15_finetune", "+experiment=emoji"])
def test_weights_of_v_are_not_trained_as_another_prediction(zero_snr, experiment):
    config, lines = followed(experiment, f"init={zero_snr}")
    assert config.model.stage.process.prediction._target_ == "ldm.diffusion.predictions.V"
    assert type(build(config.model.stage.process).prediction).__name__ == "V"
    assert lines[0].startswith(f"process is that of init={zero_snr}, which its weights were trained with")
    assert str(config.codec.autoencoder) == str(config.codec.text_encoder) == str(zero_snr)


def test_a_process_that_was_typed_is_taken_and_said(zero_snr):
    own = (f"codec.autoencoder={zero_snr}", f"codec.text_encoder={zero_snr}")
    config, lines = followed("process=ddpm", f"init={zero_snr}", *own)
    assert config.process.prediction._target_ == "ldm.diffusion.predictions.Eps"
    (line,) = lines
    assert line.startswith("process is as you typed it, not what the weights of")


def test_a_bundle_of_the_same_process_and_codec_changes_nothing():
    assert followed("init=shipped", "process=flow")[1] == []
