"""The command, with two ranks on the CPU: one run, one voice, and a network as good as one rank's."""

import json
from pathlib import Path

import pytest

from ldm.checkpoints.bundle import Bundle

pytestmark = pytest.mark.usefixtures("unrendered_figures")

ROOT = Path(__file__).parents[2]
TINY = (
    "+experiment=emoji_vae",
    "name=tiny",
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.blocks_per_level=1",
    "data.size=16",
    "steps=3",
    "trainer.val_check_interval=3",
    "trainer.precision=32",
)
DENOISER = (
    "name=tiny",
    "callbacks=diffusion",
    "callbacks.samples.prompts=[red apple]",
    "callbacks.samples.seeds=[0]",
    "sampler.steps=2",
    "steps=4",
    "trainer.val_check_interval=2",
    "trainer.precision=32",
)
SHARDS = (
    "trainer=fsdp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.strategy.save_shards=true",
    "backbone.checkpointing=true",
)


@pytest.fixture
def alone(command, emoji, tmp_path):
    """`alone(*arguments)`: the command as one rank in this process; the folder of its run."""

    def call(*arguments: str) -> Path:
        runs = tmp_path / "alone"
        command("ldm.train", f"data.root={emoji}", f"runs={runs}", *arguments)
        return next((runs / "tiny").iterdir())

    return call


@pytest.fixture
def together(command, emoji, monkeypatch, capfd, tmp_path):
    """`together(*arguments)`: the command, which starts the ranks; what they said, and their run's folder."""

    def call(*arguments: str) -> tuple[str, Path]:
        runs = tmp_path / "together"
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        command("ldm.train", f"data.root={emoji}", f"runs={runs}", *arguments)
        (run,) = (runs / "tiny").iterdir()
        return capfd.readouterr().out, run

    return call


@pytest.fixture
def forked(command, ranks, emoji, tmp_path):
    """`forked(*arguments)`: the command in each of two ranks; what both said, and their run's folder."""

    def call(*arguments: str) -> tuple[str, Path]:
        runs = tmp_path / "forked"
        typed = ("ldm.train", f"data.root={emoji}", f"runs={runs}", *arguments)
        said = ranks(lambda _: command(*typed).out)
        (run,) = (runs / "tiny").iterdir()
        return "".join(said), run

    return call


def validation(run: Path) -> dict[str, float]:
    """What the last line of a run's log says of its network."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {name: value for name, value in json.loads(lines[-1]).items() if name.startswith("val/")}


@pytest.fixture
def own_experiment(tmp_path):
    """`own_experiment()`: the arguments of TINY, its experiment in a config folder of the user's own."""

    def write() -> list[str]:
        (tmp_path / "conf" / "experiment").mkdir(parents=True)
        text = "# @package _global_\ndefaults:\n  - emoji_vae\n  - _self_\nsummary: a user's own\n"
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
        return [f"--config-dir={tmp_path / 'conf'}", "+experiment=mine", *TINY[1:]]

    return write


def test_two_ranks_make_one_run_and_a_network_like_that_of_one(alone, together, own_experiment):
    said, run = together(*own_experiment(), "batch_size=2", "trainer=cpu_ddp")
    assert said.count("a step: 2 ranks x 2 samples x 1 accumulated = 4 samples; optimizer.lr=") == 1
    assert said.count("bundle: ") == 1
    record = json.loads((run / "run.json").read_text())
    assert "trainer=cpu_ddp" in record["command"]
    assert "--config-dir=" in record["command"]  # the ranks get the folder by their environment
    ours, theirs = validation(run), validation(alone(*TINY, "batch_size=4"))
    assert set(ours) >= {"val/loss", "val/psnr"}
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)  # a structural similarity near 0


def test_a_network_in_shards_is_validated_drawn_saved_and_bundled_like_a_whole_one(
    alone, forked, tiny_backbone
):
    denoiser = (*DENOISER, *tiny_backbone)
    said, run = forked(*denoiser, *SHARDS, "batch_size=2")
    assert said.count("bundle: ") == 1
    assert len(list(run.glob("checkpoints/step=00000004/state.ckpt/*.distcp"))) == 2
    whole = alone(*denoiser, "batch_size=4")
    assert validation(run) == pytest.approx(validation(whole), rel=1e-3)
    sheets = [sorted(path.name for path in each.glob("samples/*.png")) for each in (run, whole)]
    assert sheets == [["step=000002.png", "step=000004.png"]] * 2
    ours, theirs = (Bundle.open(each / "bundle").part("backbone").state for each in (run, whole))
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }
