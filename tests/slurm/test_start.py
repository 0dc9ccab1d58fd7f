"""What a training checks and tells at its start; under srun the job queues again without Lightning's help."""

import signal
from dataclasses import replace

import pytest
from lightning_fabric.plugins.environments import SLURMEnvironment
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from ldm.data.streaming import StreamingPictureData
from ldm.planning.checks import caption_lines, check_start
from ldm.planning.fitting import make_trainer as make_own_trainer
from ldm.stages.autoencoder import AutoencoderStage
from ldm.tokenizers import Tokenizer

TASK = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "ldm-train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


class Handler(Callback):
    """What SIGUSR1 meets while Lightning's handlers are there and those that save our states are not."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.found = signal.getsignal(signal.SIGUSR1)


@pytest.fixture
def task(monkeypatch):
    """This process as a task of srun."""
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def handler_in_a_fit(make_trainer, diffusion_stage, latents):
    def call(**options):
        handler = Handler()
        make_trainer(1, handler, **options).fit(diffusion_stage(), datamodule=latents)
        return handler.found

    return call


@pytest.fixture
def places():
    """`places()`: the environment plugins of a config's trainer."""

    def found():
        trainer = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu", "devices": 1}
        made = make_own_trainer(OmegaConf.create({"trainer": trainer}))
        return [made._accelerator_connector.cluster_environment]

    return found


def test_lightning_does_not_queue_the_job_again(task, handler_in_a_fit, places):
    assert handler_in_a_fit(plugins=places()) == signal.SIG_DFL
    assert handler_in_a_fit() != signal.SIG_DFL  # what it would do otherwise


def test_a_rank_that_the_watcher_started_inside_a_job_is_no_task_of_srun(task, places, monkeypatch):
    assert isinstance(places()[0], SLURMEnvironment)
    for name, value in {"RANK": "0", "GROUP_RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ldm")
    assert not isinstance(places()[0], SLURMEnvironment)


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_float16_on_a_processor_is_refused(diffusion_stage, accelerator, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    config = {
        "trainer": {"accelerator": accelerator, "precision": "16-mixed"},
        "compile": False,
        "callbacks": {},
    }
    with pytest.raises(ValueError, match="precision=16-mixed: a CPU does not train in float16"):
        check_start(diffusion_stage(), config)
    config["trainer"]["precision"] = "bf16-mixed"
    check_start(diffusion_stage(), config)


def test_captions_longer_than_the_model_reads_are_told_once_a_split(
    diffusion_stage, latents, autoencoder, adamw
):
    stage = diffusion_stage()
    tokenizer = Tokenizer(stage.codec.tokenizer.merges, vocab_size=640, context_length=6, pad_id=639)
    stage.codec = replace(stage.codec, tokenizer=tokenizer)
    told = list(caption_lines(stage, latents))
    assert told
    for pictures in (latents.pictures.train, latents.pictures.val):
        captions = [text for own in pictures.texts() for text in own]
        cut = [text for text in captions if tokenizer.count(text) > tokenizer.context_length]
        lines = [line for line in told if line.startswith(f"{pictures.split}: ")]
        if len(cut) > 1:
            assert f"{len(cut)} of {len(captions)} captions" in lines[0]
        assert len(lines) == bool(cut)
    pictures_alone = AutoencoderStage(net=autoencoder, optimizer=adamw, decay=float, kl_weight=1e-4)
    assert list(caption_lines(pictures_alone, latents)) == []  # no tokenizer
    streamed = StreamingPictureData(root="a.tar", size=64, batch_size=2)
    (line,) = caption_lines(stage, streamed)
    assert "each is cut after 6 tokens" in line
