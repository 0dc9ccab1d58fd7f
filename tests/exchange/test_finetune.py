"""Weights of others that go on learning here: imported, trained on, exported again."""

import diffusers
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.config import CONF
from ldm.construct import construct
from ldm.planning.dry_run import dry_run

TINY = [
    "data=emoji",
    "data.size=16",
    "data.num_workers=0",
    "batch_size=4",
    "backbone.channels=32",
    "backbone.multipliers=[1,2]",
    "backbone.blocks_per_level=1",
    "backbone.norm_groups=8",
    "backbone.transformer.context_dim=16",
    "backbone.transformer.levels=[true,false]",
    "backbone.transformer.num_heads=2",
    "optimizer.lr=1e-3",
    "model.stage.decay.warmup=0",
    "trainer.accumulate_grad_batches=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "callbacks=default",
    "callbacks.ema.decay=0.5",
    "sampler.steps=4",
]
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture
def finetuned(command, imported, emoji, tmp_path):
    """The folder of diffusers that three steps from `imported` lead to."""
    command(
        "ldm.train",
        "+experiment=sd15_finetune",
        f"init={imported}",
        f"runs={tmp_path / 'runs'}",
        *TINY,
        f"data.root={emoji}",
        "steps=3",
    )
    bundle = next((tmp_path / "runs" / "sd15_finetune").glob("*/bundle"))
    command("ldm.export", f"bundle={bundle}", "to=diffusers", f"out={tmp_path / 'out'}")
    return tmp_path / "out"


def test_imported_trained_on_and_exported_it_is_a_pipeline_with_moved_weights(finetuned, saved):
    before, after = (load_file(folder / UNET) for folder in (saved, finetuned))
    assert after.keys() == before.keys()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert (
        min(moved.values()) > 3e-4
    )  # AdamW's first step is the rate, 1e-3, of which the average takes a half
    assert max(moved.values()) < 5e-3  # three such steps from where they were, not from a new network
    given, frozen = text_encoder(saved), text_encoder(finetuned)
    assert frozen.keys() == given.keys()
    assert all(torch.equal(frozen[name], tensor.half().float()) for name, tensor in given.items())
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(finetuned)
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("red apple", num_inference_steps=2, output_type="pt").images
    assert picture.isfinite().all()
    assert picture.std() > 0


def text_encoder(folder):
    """Its weights; whether their names have a prefix is a matter of the version."""
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(folder / TEXT).items()}


def test_a_training_starts_at_the_weights_of_the_bundle(diffusion_stage, bundle_path, specs):
    net, bundle = construct(specs["backbone"]), Bundle.open(bundle_path)
    stage = diffusion_stage(net=net, initial=str(bundle_path))
    expected = bundle.part("backbone").state
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stage.net.state_dict().items())
    fresh = construct(specs["backbone"]).state_dict()
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in fresh.items())


def test_a_bundle_of_another_network_is_refused_with_the_name_of_a_weight(imported, specs):
    net = construct(specs["backbone"])
    with pytest.raises(BundleError, match=r"differ in \d+ weights, such as .*: give both the same sizes"):
        Bundle.open(imported).copy_into(net, "backbone")


def test_what_does_not_fit_here_is_counted_without_memory(monkeypatch, capsys):
    monkeypatch.setattr("ldm.planning.dry_run.memory_here", lambda: 2**30)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        dry_run(compose("train", overrides=["+experiment=sd15_finetune"]))
    printed = capsys.readouterr().out
    assert "859.52 M" in printed
    assert "123.06 M   frozen" in printed
    assert "17182.6 MB" in printed  # 5 x 4 bytes of 859,520,964 parameters and 4 of 206,714,583 frozen ones
