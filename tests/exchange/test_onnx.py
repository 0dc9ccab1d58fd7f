"""Facts about a bundle's ONNX graphs: what another program draws with them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoints.bundle import Bundle, Part, load_tokenizer
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.exchange.onnx import write_onnx
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.randomness.noise import SeededNoise

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PROMPTS, SEEDS, SCALE = ["red apple", "a cat with a hat", "sun"], [5, 6, 7], 2.0
DDIM = {
    "_target_": "ldm.diffusion.samplers.Sampling",
    "method": {"_target_": "ldm.diffusion.samplers.ddim", "_partial_": True},
    "grid": {"_target_": "ldm.diffusion.grids.trailing", "_partial_": True},
    "steps": 4,
}


@pytest.fixture(scope="module")
def with_networks(imported, specs, build_network, tmp_path_factory):
    """`with_networks(text_encoder=..., backbone=...)`: a bundle like `imported` of other, random networks."""

    def write(**networks: dict[str, Any]) -> Path:
        own = Bundle.open(imported)
        networks["autoencoder"] = specs["autoencoder"] | {"multipliers": [1]}
        parts = {
            name: Part(spec=spec, state=build_network(spec, 7).state_dict())
            for name, spec in networks.items()
        }
        settings = {key: own.config[key] for key in ("size", "latents", "process", "sampler", "guidance")}
        folder = tmp_path_factory.mktemp("networks") / "bundle"
        return write_bundle(folder, parts=parts, tokenizer=own.tokenizer(), settings=settings)

    return write


@pytest.fixture(scope="module")
def bundle(imported, specs, with_networks):
    """A bundle with one layer of text, and one transformer in its U-Net: more cost the exporter seconds."""
    text = Bundle.open(imported).spec("text_encoder") | {"num_layers": 1}
    transformer = specs["backbone"]["transformer"] | {"levels": [False, False]}
    return with_networks(text_encoder=text, backbone=specs["backbone"] | {"transformer": transformer})


@pytest.fixture(scope="module")
def written(bundle, tmp_path_factory):
    """The folder, and how far each graph is from its network."""
    out = tmp_path_factory.mktemp("graphs") / "out"
    return out, write_onnx(Bundle.open(bundle), out, options={"sampler": DDIM})


@pytest.fixture(scope="module")
def graph(written):
    """`graph(name, **inputs)`: what a graph makes of its inputs."""
    folder, _ = written

    def run(name: str, **inputs: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (output,) = session.run(None, inputs)
        return output

    return run


def test_each_graph_is_its_network(written):
    _, differences = written
    assert list(differences) == ["text_encoder", "unet", "decoder"]
    assert max(differences.values()) < 1e-5  # float32, summed in another order


def test_numpy_and_the_folder_draw_the_pictures_of_the_pipeline(written, graph, bundle):
    """DDIM (Song et al. 2021, Eq. 12) with guidance, of nothing but the files."""
    folder, _ = written
    fields = json.loads((folder / "pipeline.json").read_text())
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    prompts, nothing = (
        graph("text_encoder", tokens=tokenizer.encode(texts).numpy()) for texts in (PROMPTS, [""] * 3)
    )
    x = SeededNoise(SEEDS, fields["latents"], device=torch.device("cpu")).generate().numpy()
    assert fields["process"]["prediction"]["_target_"] == "ldm.diffusion.predictions.Eps"
    steps = list(zip(fields["network_times"], fields["alpha"], fields["sigma"], strict=True))
    for (time, alpha, sigma), (_, alpha_next, sigma_next) in pairwise(steps):
        t = np.full(len(x), time, dtype=np.float32)
        cond, uncond = (graph("unet", x=x, t=t, context=context) for context in (prompts, nothing))
        eps = uncond + SCALE * (cond - uncond)
        x = (alpha_next * (x - sigma * eps) / alpha + sigma_next * eps).astype(np.float32)
    drawn = np.clip(np.round((graph("decoder", latents=x) + 1) * 127.5), 0, 255)
    expected = open_latent_diffusion(Bundle.open(bundle), sampler=DDIM, scale=SCALE)(PROMPTS, SEEDS)
    assert np.abs(drawn - expected.numpy()).max() <= 1  # a value halfway between two levels may round apart


def test_the_batch_is_free(graph):
    tokens = np.ones((1, 16), dtype=np.int64)
    one, five = graph("text_encoder", tokens=tokens), graph("text_encoder", tokens=tokens.repeat(5, axis=0))
    assert np.abs(five - one).max() < 1e-5
    assert len(five) == 5


@pytest.mark.parametrize(
    ("guidance", "refused"),
    [
        ({"_target_": "ldm.diffusion.guidance.autoguidance", "scale": 2.0, "weak": "x"}, "guidance.weak"),
        ({"_target_": "ldm.diffusion.internal.internal", "scale": 1.4}, "guidance=internal"),
    ],
)
def test_a_second_network_or_head_has_no_place(imported, tmp_path, guidance, refused):
    bundle = Bundle.open(imported)
    config = bundle.config | {"guidance": guidance | {"_partial_": True}}
    with pytest.raises(ValueError, match=f"{refused} can't be written for ONNX"):
        write_onnx(Bundle(path=bundle.path, config=config), tmp_path / "out", options={})
    assert list(tmp_path.iterdir()) == []


def test_a_text_encoder_that_is_trained_with_the_denoiser_is_written_too(
    imported, specs, with_networks, tmp_path
):
    """Its layers are in the denoiser's graph; each graph is compared at another batch size."""
    own = Bundle.open(imported).spec("text_encoder")
    sizes = {key: own[key] for key in ("vocab_size", "context_length", "width")}
    layers = {"context_length": sizes["context_length"], "num_layers": 1, "num_heads": 2}
    made = with_networks(
        text_encoder={"_target_": "ldm.models.text_encoders.TokenVectors", **sizes},
        backbone={
            "_target_": "ldm.models.text_encoders.ReadingDenoiser", "net": specs["denoiser"], **layers,
        },
    )  # fmt: skip
    differences = write_onnx(Bundle.open(made), tmp_path / "graphs", options={"sampler": DDIM})
    assert max(differences.values()) < 1e-5
