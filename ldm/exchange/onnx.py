"""A bundle as three ONNX graphs, each compared with the network that it was made of.

```
out/text_encoder.onnx   tokens: int64 b n                                -> states: b n d
out/unet.onnx           x: b c h w, t: b in network time, context: b n d -> prediction: b c h w
out/decoder.onnx        latents: b c h w, scaled                         -> images: b 3 H W, about -1 to 1
out/tokenizer.json      merges and sizes, as ldm.tokenizers.Tokenizer reads them
out/pipeline.json       process, sampler, guidance, and the times of each step with what they mean
```

All is float32, the batch is free; weights lie beside a graph in a file of its name with `.data`.
"""

import json
from collections.abc import Callable, Mapping
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

Inputs = Callable[[int], dict[str, Tensor]]  # batch -> random arguments in the order of the network's

TRACED, CHECKED = 2, 3  # samples: an export takes a batch of 1 for a constant
LIMIT = 1e-3  # of a difference, as a share of the largest value
RUNTIME = "onnxruntime"


class TextStates(nn.Module):
    """Token ids to the states that a denoiser reads."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.encoder = codec.text_encoder

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.encoder(tokens).states
        return states


class Decoder(nn.Module):
    """Scaled latents to pictures."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.autoencoder = codec.autoencoder
        self.register_buffer("shift", codec.latent_shift.view(-1, 1, 1))
        self.register_buffer("scale", codec.latent_scale.view(-1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents / self.scale + self.shift)


def write_onnx(bundle: Bundle, out: Path, *, options: Mapping[str, Any]) -> dict[str, float | None]:
    """Writes the folder, whole or not at all.

    Args:
        options: `sampler`, `grid` and `steps` to write instead of the bundle's own.

    Returns:
        By the name of each graph, how far onnxruntime's output is from the network's, as a share of its
        largest value; None where onnxruntime is not installed.

    Raises:
        NameTaken: `out` is there already.
        UserError: guidance by a second network, or a graph that is further than LIMIT from its network.
    """
    nodes = sampling_nodes(bundle, options)
    if "weak" in nodes["guidance"]:
        raise UserError(
            "guidance.weak can't be written for ONNX, which gets one U-Net: export another bundle"
        )
    codec, size, differences = codec_of(bundle, bundle), bundle.entry("size"), {}
    latent = codec.latent_shape(size)
    with new_folder(out) as folder, torch.no_grad():
        for name, (net, inputs, output) in _graphs(bundle.network("backbone"), codec, latent).items():
            path = folder / f"{name}.onnx"
            _write(net, inputs(TRACED), output, path)
            differences[name] = _difference(net, inputs(CHECKED), path) if find_spec(RUNTIME) else None
        save_tokenizer(codec.tokenizer, folder / "tokenizer.json")
        told = {"size": size, "latents": list(latent), **_steps(bundle, nodes), **nodes}
        (folder / "pipeline.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return differences


def _graphs(
    net: nn.Module, codec: Codec, latent: tuple[int, ...]
) -> dict[str, tuple[nn.Module, Inputs, str]]:
    """Network, inputs and the name of the output of each file."""
    text = codec.text_encoder

    def tokens(batch: int) -> dict[str, Tensor]:
        return {"tokens": torch.randint(text.vocab_size, (batch, text.context_length))}

    def noisy(batch: int) -> dict[str, Tensor]:
        context = torch.randn(batch, text.context_length, text.width)
        return {"x": torch.randn(batch, *latent), "t": 1000 * torch.rand(batch), "context": context}

    def latents(batch: int) -> dict[str, Tensor]:
        return {"latents": torch.randn(batch, *latent)}

    return {
        "text_encoder": (TextStates(codec).eval(), tokens, "states"),
        "unet": (net, noisy, "prediction"),
        "decoder": (Decoder(codec).eval(), latents, "images"),
    }


def _write(net: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
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
    """How far a file's output is from its network's, as a share of its largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = net(*inputs.values())
    share = ((torch.from_numpy(found) - expected).abs().max() / expected.abs().max()).item()
    if not share <= LIMIT:
        raise UserError(f"{path.name} is {share:.1e} away from its network, limit {LIMIT:.0e}: not written")
    return share


def _steps(bundle: Bundle, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """What a program needs to sample: x_t = alpha x0 + sigma eps at each of `times`."""
    process = construct(bundle.entry("process"))
    times = construct(nodes["sampler"]).times(process.schedule)
    alpha, sigma = process.schedule(times)
    numbers = {"times": times, "network_times": process.network_time(times), "alpha": alpha, "sigma": sigma}
    return {name: x.tolist() for name, x in numbers.items()} | {"process": bundle.entry("process")}
