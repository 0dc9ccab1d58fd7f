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
from dataclasses import dataclass
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

TRACED, CHECKED = 2, 3  # samples: an export takes a batch of 1 for a constant
LIMIT = 1e-3  # of a difference, as a share of the largest value
RUNTIME = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network with the inputs and the output that its file names.

    Attributes:
        inputs: `inputs(batch)`: arguments in the order in which the network takes them.
    """

    net: nn.Module
    inputs: Callable[[int], dict[str, Tensor]]
    output: str


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
        BundleError: a bundle that can't generate, or is damaged.
        NameTaken: `out` is there already.
        UserError: guidance by a second network, or a graph that computes something else than its network.
    """
    nodes = sampling_nodes(bundle, options)
    if "weak" in nodes["guidance"]:
        raise UserError(
            "guidance.weak can't be written for ONNX, which gets one U-Net: export another bundle"
        )
    codec = codec_of(bundle, bundle)
    differences = {}
    with new_folder(out) as folder, torch.no_grad():
        for name, graph in graphs(bundle, codec).items():
            write_graph(graph, folder / f"{name}.onnx")
            differences[name] = difference(graph, folder / f"{name}.onnx") if find_spec(RUNTIME) else None
        save_tokenizer(codec.tokenizer, folder / "tokenizer.json")
        told = json.dumps(pipeline_fields(bundle, nodes, codec), indent=2)
        (folder / "pipeline.json").write_text(told + "\n", encoding="utf-8")
    return differences


def graphs(bundle: Bundle, codec: Codec) -> dict[str, Graph]:
    """The three graphs of a bundle."""
    text, latent = codec.text_encoder, codec.latent_shape(bundle.entry("size"))

    def tokens(batch: int) -> dict[str, Tensor]:
        return {"tokens": torch.randint(text.vocab_size, (batch, text.context_length))}

    def noisy(batch: int) -> dict[str, Tensor]:
        context = torch.randn(batch, text.context_length, text.width)
        return {"x": torch.randn(batch, *latent), "t": 1000 * torch.rand(batch), "context": context}

    def latents(batch: int) -> dict[str, Tensor]:
        return {"latents": torch.randn(batch, *latent)}

    return {
        "text_encoder": Graph(net=TextStates(codec).eval(), inputs=tokens, output="states"),
        "unet": Graph(net=bundle.network("backbone"), inputs=noisy, output="prediction"),
        "decoder": Graph(net=Decoder(codec).eval(), inputs=latents, output="images"),
    }


def write_graph(graph: Graph, path: Path) -> None:
    """Traces a network into a file; every input's first dimension stays free."""
    inputs, batch = graph.inputs(TRACED), torch.export.Dim.DYNAMIC
    torch.onnx.export(
        graph.net,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=[graph.output],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        external_data=True,
        dynamo=True,
        verbose=False,
    )


def difference(graph: Graph, path: Path) -> float:
    """How far a file's output is from its network's for another batch, as a share of its largest value.

    Raises:
        UserError: more than LIMIT.
    """
    import onnxruntime

    inputs = graph.inputs(CHECKED)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run([graph.output], {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = graph.net(*inputs.values())
    share = ((torch.from_numpy(found) - expected).abs().max() / expected.abs().max()).item()
    if not share <= LIMIT:
        raise UserError(f"{path.name} is {share:.1e} away from its network, limit {LIMIT:.0e}: not written")
    return share


def pipeline_fields(bundle: Bundle, nodes: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """What a program needs beside the graphs to generate, x_t = alpha x0 + sigma eps at each of `times`."""
    process, sampling = construct(bundle.entry("process")), construct(nodes["sampler"])
    times = sampling.times(process.schedule)
    alpha, sigma = process.schedule(times)
    return {
        "size": bundle.entry("size"),
        "latents": list(codec.latent_shape(bundle.entry("size"))),
        "times": times.tolist(),
        "network_times": process.network_time(times).tolist(),
        "alpha": alpha.tolist(),
        "sigma": sigma.tolist(),
        "process": bundle.entry("process"),
        **nodes,
    }
