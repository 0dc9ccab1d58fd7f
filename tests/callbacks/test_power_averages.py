"""Facts about the averages that a training writes out."""

import pytest
import torch
from pytorch_lightning import Callback
from torch.testing import assert_close

from ldm.callbacks.ema import EMA, PowerAverages
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.power_average import Averages, Profile, decay, exponent_of

LENGTHS = [0.05, 0.2]


class Watcher(Callback):
    """The network's first kernel after each step."""

    def __init__(self) -> None:
        self.raw = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.raw.append(pl_module.net.patches_in.weight.detach().clone())


@pytest.fixture
def train(diffusion_stage, latents, make_trainer, build_network, specs, tmp_path):
    """`train(steps)`: a training that saves its state after each step; returns what its network was."""

    def run(steps: int, *, name: str = "run", state: int | None = None, lengths=LENGTHS, **options):
        folder, stage, watcher = tmp_path / name, diffusion_stage(), Watcher()
        stage.net = build_network(specs["denoiser"], 2)
        averages = PowerAverages(lengths=lengths, every=2, folder=str(folder / "averages"))
        saving = SaveStates(folder=str(folder / "checkpoints"), every=1, keep=9)
        trainer = make_trainer(steps, EMA(decay=0.9), averages, saving, watcher, **options)
        path = None if state is None else folder / "checkpoints" / f"step={state:08d}" / "state.ckpt"
        trainer.fit(stage, datamodule=latents, ckpt_path=path, weights_only=True)
        return watcher.raw

    return run


def test_what_is_written_follows_the_closed_form(train, tmp_path):
    raw = train(4)
    for length in LENGTHS:
        expected = raw[0]
        for step in (2, 3, 4):
            expected = torch.lerp(expected, raw[step - 1], 1 - decay(step, exponent_of(length)))
        (_, path) = Averages(tmp_path / "run" / "averages").kept(until=4).popitem()
        assert path.name.startswith("step=00000004")
        written = Averages(tmp_path / "run" / "averages").average(Profile(4, length))
        assert_close(written["patches_in.weight"], expected, rtol=1e-5, atol=1e-6)


def test_they_are_written_at_intervals_and_at_the_end(train, tmp_path):
    train(5)
    kept = Averages(tmp_path / "run" / "averages").kept(until=5)
    assert list(kept) == [Profile(step, length) for step in (2, 4, 5) for length in LENGTHS]


def test_a_resumed_training_writes_the_same_bytes(train, tmp_path):
    train(6)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "run" / "averages").iterdir()}
    assert len(whole) == 6
    train(3, name="other")
    train(6, name="other", state=3)
    resumed = {path.name: path.read_bytes() for path in (tmp_path / "other" / "averages").iterdir()}
    assert {name: resumed[name] for name in whole} == whole


def test_an_accumulating_batch_does_not_count(train, tmp_path):
    train(2, accumulate_grad_batches=2)
    assert [each.step for each in Averages(tmp_path / "run" / "averages").kept(until=9)] == [2, 2]


def test_no_lengths_write_nothing(train, tmp_path):
    train(2, lengths=[])
    assert not (tmp_path / "run" / "averages").exists()


def test_averages_do_not_begin_in_the_middle(train):
    train(2, lengths=[0.1])
    with pytest.raises(ValueError, match="averages can't begin in the middle of a training"):
        train(4, state=2)


def test_leftovers_of_a_killed_writer_are_swept(train, tmp_path):
    folder = tmp_path / "run" / "averages"
    folder.mkdir(parents=True)
    (folder / ".tmp-of-a-killed-process").write_bytes(b"half")
    train(2)
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("every", [0, -1])
def test_an_interval_below_one_step_is_refused(every, tmp_path):
    with pytest.raises(ValueError, match="must be at least 1 step"):
        PowerAverages(lengths=LENGTHS, every=every, folder=str(tmp_path))
