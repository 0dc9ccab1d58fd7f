"""Facts about code in weights: whatever a pickle names, and wherever it lies, nothing of it runs."""

import bz2
import codecs
import gzip
import importlib
import io
import json
import logging
import lzma
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import timeit
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.checkpoints.training_state import save_state
from ldm.exchange.weights import MODULES, SCRIPTED
from ldm.generators.denoiser_writer import bundle_of_state
from ldm.io.reading import hash_file

# name -> (callable, its arguments, where the canary's path stands): each leaves something at the path
CANARIES = {
    "os.system": (os.system, ("touch {}",)),
    "os.mkdir": (os.mkdir, ("{}",)),
    "os.makedirs": (os.makedirs, ("{}",)),
    "os.mkfifo": (os.mkfifo, ("{}",)),
    "os.symlink": (os.symlink, ("/", "{}")),
    "shutil.copyfile": (shutil.copyfile, (__file__, "{}")),
    "subprocess.call": (subprocess.call, (["touch", "{}"],)),
    "subprocess.check_output": (subprocess.check_output, (["touch", "{}"],)),
    "subprocess.run": (subprocess.run, (["touch", "{}"],)),
    "builtins.eval": (eval, ("open('{}', 'w')",)),
    "builtins.exec": (exec, ("open('{}', 'w')",)),
    "io.open": (io.open, ("{}", "w")),
    "codecs.open": (codecs.open, ("{}", "w")),
    "gzip.open": (gzip.open, ("{}", "w")),
    "bz2.open": (bz2.open, ("{}", "w")),
    "lzma.open": (lzma.open, ("{}", "w")),
    "tarfile.open": (tarfile.open, ("{}", "w")),
    "zipfile.ZipFile": (zipfile.ZipFile, ("{}", "w")),
    "logging.FileHandler": (logging.FileHandler, ("{}",)),
    "pathlib.Path.touch": (pathlib.Path.touch, (Path("{}"),)),
    "pathlib.Path.write_text": (pathlib.Path.write_text, (Path("{}"), "x")),
    "tempfile.mkdtemp": (tempfile.mkdtemp, ("", "{}", "")),
    "timeit.timeit": (timeit.timeit, ("open('{}', 'w')", "pass", timeit.default_timer, 1)),
    "runpy.run_path": (runpy.run_path, ("{}.py",)),
    "importlib.import_module": (importlib.import_module, ("canary",)),
    "numpy.savetxt": (numpy.savetxt, ("{}", [1.0])),
    "torch.save": (torch.save, ([1], "{}")),
}
FOLDERS = {
    "unet/diffusion_pytorch_model": "a U-Net of a pipeline",
    "vae/diffusion_pytorch_model": "an autoencoder of a pipeline",
    "text_encoder/pytorch_model": "a text encoder of a pipeline",
}


FORMS = ("zip", "scripted", "legacy", "bare")
IN_YAML = [name for name in CANARIES if "Path." not in name]  # yaml has no spelling for a class's methods


class Canary:
    """Unpickled, it calls a function with arguments."""

    def __init__(self, call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call


def filled(value, path: Path):
    if isinstance(value, str):
        return value.replace("{}", str(path))
    if isinstance(value, Path):
        return path
    return [filled(each, path) for each in value] if isinstance(value, list) else value


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """`canary(name)`: an object that leaves a mark when it is unpickled, and the mark's path."""
    mark = tmp_path / "mark"
    (tmp_path / "mark.py").write_text(f"open({str(mark)!r}, 'w')")
    (tmp_path / "canary.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "canary", raising=False)  # a module runs once, when it is first imported

    def make(name: str):
        function, arguments = CANARIES[name]
        return Canary((function, tuple(filled(argument, mark) for argument in arguments))), tmp_path

    return make


def fired(folder: Path) -> bool:
    return any(path.name.startswith("mark") and path.suffix != ".py" for path in folder.iterdir())


def pickled(bird: Canary, path: Path, form: str) -> Path:
    """A file with the canary in one of the forms that weights come in."""
    content = {"state_dict": {"model.diffusion_model.out.2.bias": torch.ones(2), "bird": bird}}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    elif form == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content, path)
        if form == "scripted":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(f"{archive.namelist()[0].split('/')[0]}/constants.pkl", b"")
    return path


@pytest.mark.parametrize("name", CANARIES)
def test_a_canary_that_is_unpickled_fires(canary, name):
    bird, folder = canary(name)
    pickle.loads(pickle.dumps(bird))
    assert fired(folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CANARIES)
def test_none_fires_in_a_file(canary, tiny, tmp_path, name, form):
    bird, folder = canary(name)
    for ending in ("ckpt", "safetensors"):
        with pytest.raises(ValueError, match=r"is refused|neither a whole safetensors file"):
            tiny(pickled(bird, tmp_path / f"weights.{ending}", form), clip="ViT-B-32")
    assert not fired(folder)


@pytest.mark.parametrize("name", CANARIES)
def test_none_fires_in_a_folder(canary, tiny, copied, name):
    bird, folder = canary(name)
    for stem in FOLDERS:
        for kept in (copied / stem).parent.glob("*.safetensors"):
            kept.unlink()
        pickled(bird, copied / f"{stem}.bin", "zip")
        with pytest.raises(ValueError, match="is refused"):
            tiny((copied / stem).parent)
    with pytest.raises(ValueError, match="is refused"):
        tiny(copied)
    assert not fired(folder)


@pytest.fixture
def bundle(bundle_path, tmp_path) -> Path:
    """A bundle, to be damaged."""
    return shutil.copytree(bundle_path, tmp_path / "bundle")


@pytest.mark.parametrize("name", CANARIES)
def test_none_fires_in_a_bundle(canary, bundle, name):
    """Under the name of a part's weights, their hash in the config made to match."""
    bird, folder = canary(name)
    config = yaml.safe_load((bundle / "config.yaml").read_text())
    for form in FORMS:
        file = pickled(bird, bundle / "backbone.safetensors", form)
        config["parts"]["backbone"]["sha256"] = hash_file(file)
        (bundle / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(BundleError, match="is not a whole safetensors file"):
            Bundle.open(bundle).network("backbone")
    assert not fired(folder)


@pytest.mark.parametrize("name", IN_YAML)
def test_none_fires_in_a_bundles_yaml(canary, bundle, name):
    """And it would, were the yaml read by a loader that makes objects."""
    bird, folder = canary(name)
    entry = yaml.dump({"extra": bird})
    with (bundle / "config.yaml").open("a") as config:
        config.write(entry)
    with pytest.raises(BundleError, match=r"config\.yaml is damaged"):
        Bundle.open(bundle)
    assert not fired(folder)
    yaml.unsafe_load(entry)
    assert fired(folder)


@pytest.mark.parametrize("name", CANARIES)
def test_none_fires_in_a_training_state(canary, bundle_path, specs, tmp_path, name):
    bird, folder = canary(name)
    run = tmp_path / "run"
    codec = {"autoencoder": str(bundle_path), "text_encoder": str(bundle_path)}
    state = save_state(
        run / "checkpoints", 1, lambda path: torch.save({"callbacks": {"EMA": bird}}, path), keep=1
    )
    settings = {"name": "tiny", "backbone": specs["backbone"], "codec": codec, "process": {}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="is no checkpoint of ours, or damaged"):
        bundle_of_state(state, tmp_path / "out")
    assert not fired(folder)


@pytest.mark.parametrize(("form", "package"), [("scripted", SCRIPTED), *(("zip", each) for each in MODULES)])
@pytest.mark.parametrize("name", CANARIES)
def test_a_stand_in_for_a_class_calls_nothing(canary, tiny, tmp_path, name, form, package):
    """A global that pretends to be TorchScript's, or a module's class, is a class that does nothing."""
    bird, folder = canary(name)
    path = pickled(bird, tmp_path / "weights.pt", form)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    module = getattr(CANARIES[name][0], "__module__", None) or "builtins"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            forged = content.replace(f"c{module}\n".encode(), f"c{package}{module}\n".encode())
            archive.writestr(entry, forged)
    with pytest.raises(ValueError, match=r"weights\.pt"):
        tiny(path)
    assert not fired(folder)


@pytest.fixture
def mark(copied, tmp_path) -> Path:
    """What would be there if a script that lies in a pipeline's folder had run."""
    for folder in (copied, copied / "unet", copied / "scheduler"):
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    return tmp_path / "mark"


@pytest.mark.parametrize("file", ["model_index", "unet/config", "vae/config", "scheduler/scheduler_config"])
@pytest.mark.parametrize(
    "value", ["os.system", "evil.Evil", {"_target_": "os.system", "command": "touch mark"}]
)
def test_a_target_in_a_config_means_nothing(tiny, copied, mark, file, value):
    path = copied / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_target_": value}))
    assert tiny(copied).parts.keys() == {"backbone", "autoencoder", "text_encoder"}
    assert not mark.exists()


@pytest.mark.parametrize(
    "key", ["auto_map", "_class_name", "down_block_types", "act_fn", "encoder_hid_dim_type"]
)
def test_a_class_of_the_folders_own_is_refused(tiny, copied, mark, key):
    path = copied / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "evil.Evil"}))
    with pytest.raises(ValueError, match=key if key != "_class_name" else "evil.Evil"):
        tiny(copied / "unet")
    assert not mark.exists()
