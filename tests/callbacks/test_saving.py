"""Facts about when training states are saved."""

import multiprocessing
import os
import pty
import resource
import shutil
import signal
import subprocess
import tempfile

import pytest
import torch
from pytorch_lightning import Callback

from ldm.callbacks.saving import SIGNALS, SaveStates, StoppedBySignal
from ldm.checkpoints.training_state import newest_state


class Signals(Callback):
    """Sends signals to this process when a batch begins."""

    def __init__(self, *numbers: int, batch: int) -> None:
        self.numbers, self.batch = numbers, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture
def fit(diffusion_stage, latents, make_trainer, tmp_path):
    def run(*callbacks, every=100, keep=9, steps=6, ckpt_path=None, **options):
        saving = SaveStates(folder=tmp_path / "states", every=every, keep=keep)
        stage = diffusion_stage()
        trainer = make_trainer(steps, saving, *callbacks, **options)
        trainer.fit(stage, datamodule=latents, ckpt_path=ckpt_path, weights_only=True)
        return stage

    return run


def saved(tmp_path) -> list[int]:
    return sorted(int(path.name.removeprefix("step=")) for path in (tmp_path / "states").glob("step=*"))


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 6]), (4, [4, 6]), (100, [6])])
def test_states_are_saved_at_intervals_and_at_the_end(fit, tmp_path, every, expected):
    stage = fit(every=every)
    assert saved(tmp_path) == expected
    state = torch.load(newest_state(tmp_path / "states"), weights_only=True)
    assert state["global_step"] == 6
    assert all(torch.equal(value, state["state_dict"][key]) for key, value in stage.state_dict().items())
    assert state["optimizer_states"]


def test_the_oldest_go(fit, tmp_path):
    fit(every=1, keep=2)
    assert saved(tmp_path) == [5, 6]


def test_an_accumulating_batch_saves_nothing(fit, tmp_path):
    fit(every=1, steps=3, accumulate_grad_batches=2)
    assert saved(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_step_in_progress_and_stops(fit, tmp_path, number):
    with pytest.raises(StoppedBySignal, match=f"{signal.Signals(number).name}: stopped at step 4 of 6"):
        fit(Signals(number, batch=3))
    assert saved(tmp_path) == [4]


def test_a_signal_inside_an_accumulation_waits_for_the_step(fit, tmp_path):
    with pytest.raises(StoppedBySignal, match="stopped at step 2 of 3"):
        fit(Signals(signal.SIGTERM, batch=2), steps=3, accumulate_grad_batches=2)
    assert saved(tmp_path) == [2]


def test_a_second_interrupt_ends_at_once(fit, tmp_path):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Signals(signal.SIGINT, signal.SIGINT, batch=3))
    assert not (tmp_path / "states").exists()


class Prints(Callback):
    """A line to the terminal before each step, which fails once the terminal has gone."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        os.write(1, b"step %d\n" % batch_idx)


def test_a_terminal_that_closes_ends_a_training_whose_step_is_saved(fit, tmp_path):
    child, terminal = pty.fork()
    if not child:
        try:
            fit(Prints(), steps=10**6)
        except StoppedBySignal:
            os._exit(3)
        finally:
            os._exit(1)
    shown = b""
    while b"step 3" not in shown:
        shown += os.read(terminal, 2**10)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert saved(tmp_path)[0] > 3


def test_a_hangup_that_nohup_has_ignored_stops_nothing(fit, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(Signals(signal.SIGHUP, batch=1), steps=4)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert saved(tmp_path) == [4]


@pytest.mark.parametrize("callbacks", [(), (Signals(signal.SIGTERM, batch=1),)])
def test_the_handlers_of_before_come_back(fit, callbacks):
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        fit(*callbacks, steps=3)
    except StoppedBySignal:
        assert callbacks
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_full_disk_stops_training_and_leaves_the_earlier_state(fit, tmp_path):
    class Fills(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="File too large"):
            fit(Fills(), every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved(tmp_path) == [1, 2]
    assert newest_state(tmp_path / "states").parent.name == "step=00000002"


class SignalsToLoaders(Callback):
    """Has another process send a signal to the loader's processes, as a cluster does, when a batch begins."""

    def __init__(self, number: int, *, batch: int) -> None:
        self.number, self.batch = number, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            loaders = [str(process.pid) for process in multiprocessing.active_children()]
            assert len(loaders) == 2
            subprocess.run(["kill", f"-{self.number}", *loaders], check=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_all_processes_leaves_the_batches_alone(fit, latents, tmp_path, number):
    latents.pictures.num_workers = 2
    fit(SignalsToLoaders(number, batch=1), steps=12)  # more than the loader has made ahead
    assert saved(tmp_path) == [12]


def test_a_termination_while_the_loader_starts_ends_the_first_step(fit, latents, tmp_path):
    start = latents.train_dataloader

    def terminated():
        os.kill(os.getpid(), signal.SIGTERM)
        return start()

    latents.train_dataloader = terminated
    with pytest.raises(StoppedBySignal, match="SIGTERM: stopped at step 1 of 6"):
        fit()
    assert saved(tmp_path) == [1]


def test_signals_reach_the_process_again_after_a_failure(fit):
    class Fails(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fit(Fails())
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)


def test_a_state_is_written_where_it_belongs_and_nowhere_else(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    fit(every=3)
    assert saved(tmp_path) == [3, 6]


def test_a_training_discards_the_damaged_states_that_it_has_passed_over(fit, tmp_path):
    states = tmp_path / "states"
    fit(every=2, keep=9, steps=4)
    (states / "step=00000004" / "state.ckpt").write_bytes(b"other")
    shutil.copytree(states / "step=00000004", states / "step=00000005")
    fit(every=100, keep=2, ckpt_path=newest_state(states))
    assert saved(tmp_path) == [2, 6]
