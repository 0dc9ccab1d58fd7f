"""Facts about folders of somebody else: links in a run, a set or an output lead no command outside them."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from hydra_plugins.ldm_sweeps.points import Point
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.checkpoints.power_average import Averages, Profile
from ldm.checkpoints.training_state import newest_state
from ldm.data.shards import PictureDataset
from ldm.data.stored import ORIGIN, stored_moments
from ldm.evaluation.command import write_prompts
from ldm.evaluation.reference_set import FeatureCache
from ldm.io.pictures import save_sheet
from ldm.io.writing import LinkRefused
from ldm.loggers.metrics_log import MetricsLog
from ldm.loggers.tensorboard_log import TensorBoardRecorder
from ldm.loggers.wandb_log import WandbRecorder

PIXELS = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.fixture
def victim(tmp_path):
    """A folder of the user that no command was given: a text file and what looks like a leftover."""
    folder = tmp_path / "victim"
    (folder / ".tmp-precious").mkdir(parents=True)
    (folder / "notes.txt").write_text("precious")
    (folder / ".tmp-precious" / "file").write_text("precious, too")
    return folder


def state(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns) for path in paths
    }


def link(place: Path, target: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def log_line(run: Path) -> None:
    MetricsLog(run / "metrics.jsonl").log_metrics({"loss": 1.0}, step=1)


def rewind(run: Path) -> None:
    MetricsLog(run / "metrics.jsonl").rewind(1)


def record_in_wandb(run: Path) -> None:
    WandbRecorder(project="p", name="n", folder=run, artifact=False, patience=1)


IN_A_RUN = {
    "a line of the log": ("metrics.jsonl", "notes.txt", log_line),
    "the log rewound": ("metrics.jsonl", "notes.txt", rewind),
    "a sheet": (
        "samples/step=000001.png",
        "notes.txt",
        lambda run: save_sheet([PIXELS], run / "samples/step=000001.png", columns=1, below=run),
    ),
    "the folder of sheets": (
        "samples",
        ".",
        lambda run: save_sheet([PIXELS], run / "samples/step=000001.png", columns=1, below=run),
    ),
    "an average": (
        "averages",
        ".",
        lambda run: Averages(run / "averages").write(Profile(1, 0.1), {"x": PIXELS}),
    ),
    "W&B's folder": ("wandb", ".", record_in_wandb),
    "TensorBoard's folder": ("tensorboard", ".", lambda run: TensorBoardRecorder(run).metrics({"x": 1.0}, 1)),
    "a point of a sweep": (
        "point",
        ".",
        lambda run: Point(folder=run / "point", swept={}, command=[]).save(),
    ),
}


@pytest.mark.parametrize("name", IN_A_RUN)
def test_links_in_a_run_are_refused(name, victim, tmp_path):
    place, target, act = IN_A_RUN[name]
    run = tmp_path / "run"
    link(run / place, victim / target)
    before = state(victim)
    with pytest.raises(LinkRefused, match=f"^{run / place} is a link to {victim}.*, and nothing is written"):
        act(run)
    assert state(victim) == before


def test_a_link_under_the_name_of_an_old_temporary_file_is_not_written_through(victim, tmp_path):
    link(tmp_path / "metrics.tmp", victim / "notes.txt")
    before = state(victim)
    log_line(tmp_path)
    rewind(tmp_path)
    assert state(victim) == before


PIPES = {
    "the log": ("metrics.jsonl", rewind),
    "the pointer": ("checkpoints/newest", lambda run: newest_state(run / "checkpoints")),
    "a checkpoint": ("checkpoints/step=00000001/state.ckpt", lambda run: newest_state(run / "checkpoints")),
}


@pytest.mark.parametrize("name", PIPES)
def test_pipes_in_a_run_are_not_waited_for(name, tmp_path):
    place, act = PIPES[name]
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    files = {"state.ckpt": {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}, "": {}}
    (path.parent / "manifest.json").write_text(json.dumps({"step": 1, "files": files}))
    act(tmp_path)  # would never end


@pytest.mark.parametrize("place", ["latents", "latents/*", f"latents/*/{ORIGIN}", "latents/*/val-000000.tar"])
def test_links_in_a_data_set_are_refused(place, victim, copy_emoji, codec):
    root = copy_emoji()
    pictures = PictureDataset(str(root), split="val", size=16)
    folder = stored_moments(pictures, codec, mirrored=False).arrays().folder  # its name follows from the set
    shutil.rmtree(root / "latents")
    found = link(root / place.replace("*", folder.name), victim / ("notes.txt" if "." in place else "."))
    before = state(victim)
    with pytest.raises(LinkRefused, match=f"^{found} is a link to {victim}"):
        stored_moments(pictures, codec, mirrored=False).arrays()
    assert state(victim) == before


def test_a_link_in_the_place_of_a_sets_features_is_refused(victim, copy_emoji):
    root = copy_emoji()
    link(root / "features", victim)
    before = state(victim)
    with pytest.raises(LinkRefused, match="features is a link to"):
        FeatureCache.at(str(root / "features"), root=str(root))
    assert state(victim) == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pictures.jsonl", "{out}/pictures.jsonl is a link to"),
        ("0000.png", "out={out} holds 0000.png, which ldm.sample has not written"),
    ],
)
def test_links_among_generated_pictures_are_refused(name, sentence, victim, tmp_path, bundle_path, command):
    out = tmp_path / "out"
    link(out / name, victim / "notes.txt")
    before = state(victim)
    options = [f"bundle={bundle_path}", f"out={out}", "prompts=[a hat]", "per_prompt=1", "steps=1"]
    assert sentence.format(out=out) in command("ldm.sample", *options, "overwrite=true", status=1).sentence
    assert state(victim) == before


@pytest.mark.parametrize("target", ["bundle", "."])
def test_a_bundle_is_not_written_through_a_link(target, victim, tmp_path):
    out = link(tmp_path / "out", victim / target)
    before = state(victim)
    with pytest.raises(FileExistsError, match=f"^{out} exists already"):
        write_bundle(out, parts={}, settings={})
    assert state(victim) == before


def test_a_file_that_is_named_and_is_a_link_is_refused(victim, tmp_path):
    out = link(tmp_path / "prompts.csv", victim / "new.csv")
    before = state(victim)
    with pytest.raises(LinkRefused, match=r"prompts\.csv is a link to"):
        write_prompts(out, [])
    assert state(victim) == before
