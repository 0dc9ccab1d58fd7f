"""A bundle as three ONNX graphs, each compared with its network.

```
out/text_encoder.onnx   tokens: int64 b n                                -> states: b n d
out/unet.onnx           x: b c h w, t: b in network time, context: b n d -> prediction: b c h w
out/decoder.onnx        latents: b c h w, scaled                         -> images: b 3 H W, about -1 to 1
out/tokenizer.json      merges and sizes, as in a bundle
out/pipeline.json       process, sampler, guidance, and the timesteps with their alpha and sigma
```

All is float32, and the batch size is free. The weights of a graph are beside it in a file with `.data`.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.bundle_writer import save_tokenizer
from ldm.codec import Codec
from ldm.construct import construct
from ldm.generators.diffusion_bundle import codec_of, sampling_nodes
from ldm.io.writing import new_folder

TRACED, CHECKED = 2, 3  # batch sizes; the exporter takes a 1 for a constant
LIMIT = 1e-3  # of a difference, as a share of the largest value
RUNTIME = "onnxruntime"


class TextStates(nn.Module):
    """Token ids to the states that a denoiser reads."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.encoder = codec.text_encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """b n -> b n d."""
        return self.encoder(tokens).states


class Decoder(nn.Module):
    """Scaled latents to pictures."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.autoencoder = codec.autoencoder
        self.register_buffer("shift", codec.latent_shift.view(-1, 1, 1))
        self.register_buffer("scale", codec.latent_scale.view(-1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """b c h w -> b 3 H W."""
        return self.autoencoder.decode(latents / self.scale + self.shift)


def write_onnx(bundle: Bundle, out: Path, *, options: Mapping[str, Any]) -> dict[str, float | None]:
    """Writes the folder whole or not at all; NameTaken if it exists. Options are as of `open_export`.

    Returns by the name of each graph the difference of onnxruntime's output from the network's as a share of
    the largest value, which LIMIT bounds; None without onnxruntime.
    """
    nodes = sampling_nodes(bundle, options)
    if "weak" in nodes["guidance"]:
        raise UserError("guidance.weak can't be written for ONNX, which has one U-Net: use another bundle")
    if "ldm.diffusion.internal." in str(nodes["guidance"]):
        raise UserError(
            "guidance=internal can't be written for ONNX, whose graph has one head: type +guidance=cfg"
        )
    codec, size, differences = codec_of(bundle, bundle), bundle.entry("size"), {}
    latent = codec.latent_shape(size)
    networks = {
        "text_encoder": (TextStates(codec).eval(), "states"),
        "unet": (bundle.network("backbone"), "prediction"),
        "decoder": (Decoder(codec).eval(), "images"),
    }
    traced, checked = (_inputs(codec, latent, batch) for batch in (TRACED, CHECKED))
    with new_folder(out) as folder, torch.no_grad():
        for name, (net, output) in networks.items():
            path = folder / f"{name}.onnx"
            _trace(net, traced[name], output, path)
            differences[name] = _difference(net, checked[name], path) if find_spec(RUNTIME) else None
        save_tokenizer(codec.tokenizer, folder / "tokenizer.json")
        content = {"size": size, "latents": list(latent), **_steps(bundle, nodes), **nodes}
        (folder / "pipeline.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return differences


def _inputs(codec: Codec, latent: tuple[int, ...], batch: int) -> dict[str, dict[str, Tensor]]:
    """Random inputs by the name of each graph, in the order of its network's arguments."""
    text, x = codec.text_encoder, torch.randn(batch, *latent)
    context = torch.randn(batch, text.context_length, text.width)
    return {
        "text_encoder": {"tokens": torch.randint(text.vocab_size, (batch, text.context_length))},
        "unet": {"x": x, "t": 1000 * torch.rand(batch), "context": context},
        "decoder": {"latents": x},
    }


def _trace(net: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Traces a network into a file; every input's first dimension stays free."""
    torch.onnx.export(
        net,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
        external_data=True,
        dynamo=True,
        verbose=False,
    )


def _difference(net: nn.Module, inputs: dict[str, Tensor], path: Path) -> float:
    """The difference of a file's output from its network's, as a share of the largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = net(*inputs.values())
    share = ((torch.from_numpy(found) - expected).abs().max() / expected.abs().max()).item()
    if not share <= LIMIT:
        raise UserError(f"{path.name} is not written: it differs by {share:.1e}, limit {LIMIT:.0e}")
    return share


def _steps(bundle: Bundle, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a sampling program needs: x_t = alpha x0 + sigma eps at each of `times`."""
    process = construct(bundle.entry("process"))
    times = construct(nodes["sampler"]).times(process.schedule)
    alpha, sigma = process.schedule(times)
    numbers = {"times": times, "network_times": process.network_time(times), "alpha": alpha, "sigma": sigma}
    return {name: x.tolist() for name, x in numbers.items()} | {"process": bundle.entry("process")}
