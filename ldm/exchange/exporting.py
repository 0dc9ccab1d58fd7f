"""The way out: a bundle as a diffusers folder or as one file with CompVis' names; ONNX graphs are in `onnx`.

What the format can't express is refused before anything is written, or goes into a record beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import CARD, model_card, save_tensors
from ldm.exchange.compvis import OWN, header
from ldm.exchange.compvis import networks as compvis_networks
from ldm.exchange.diffusers import Architecture, from_configs, to_configs
from ldm.exchange.folder import END, INDEX, padding, write_vocabulary
from ldm.exchange.imported import RECORD, TENSORS, Imported, make_record
from ldm.exchange.keymap import reverse, translate
from ldm.exchange.names import text_rules, unet_rules, vae_rules
from ldm.generators.diffusion_bundle import sampling_nodes
from ldm.io.fields import Fields
from ldm.io.reading import read_json
from ldm.io.writing import NameTaken, drafting, new_folder
from ldm.tokenizers import Tokenizer

Config = dict[str, Any]
State = Mapping[str, Tensor]

DIFFUSERS = "0.42.1"  # the version that writes such files
PLACES = ("results.json", "../evaluation/results.json")  # of measured numbers, from a bundle's folder
PARTS = ("backbone", "autoencoder", "text_encoder")
NOT_SETTINGS = ("format", "parts", "tokenizer")
LIBRARIES = {"text_encoder": "transformers", "tokenizer": "transformers"}
ABSENT = ("feature_extractor", "image_encoder", "safety_checker")
USAGE = """```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("<this folder>")
pipeline("a red apple", num_inference_steps={steps}, guidance_scale={guidance:g}).images[0]
```

The folder has no safety checker. `ldm.json` has what diffusers can't express:
`python -m ldm.export from=<this folder> out=<bundle>` restores the bundle."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A pipeline that is ready to be written in either format."""

    architecture: Architecture  # with latents of one scale
    configs: dict[str, Config]  # the same as diffusers' configs, by the names of its folders
    states: Mapping[str, State]  # weights of backbone, autoencoder and text encoder, under our names
    tokenizer: Tokenizer
    own: Imported  # the bundle's settings and parts
    notes: list[str] = field(default_factory=list)  # what was left out or changed
    results: Mapping[str, Any] | None = None  # measured numbers of the bundle, for the model card

    def record(self, dtype: torch.dtype) -> tuple[Config, dict[str, Tensor]]:
        """The record of everything that the written files can't hold: json and tensors."""
        exported = from_configs({name: Fields(name, config) for name, config in self.configs.items()})
        parts = {name: Part(spec=getattr(exported, name), state=self.states[name]) for name in PARTS}
        return make_record(self.own, Imported(parts=parts, settings=exported.settings()), dtype)


def open_export(bundle: Bundle, options: Mapping[str, Any]) -> Export:
    """A bundle's pipeline with diffusers' configs; an option that diffusers lacks is refused by its name.

    The options are `sampler`, `grid` and `steps` to write instead of the bundle's own.
    """
    nodes = sampling_nodes(bundle, options)
    architecture = Architecture(
        **{name: bundle.spec(name) for name in PARTS},
        process=bundle.entry("process"),
        sampler=nodes["sampler"],
        latents=bundle.entry("latents"),
        size=bundle.entry("size"),
        linear_projection=bundle.config.get("linear_projection", False),
    )
    tokenizer, latents = bundle.tokenizer(), architecture.latents
    # StableDiffusionPipeline knows one scale for all channels, and no shift
    one_scale = not any(latents["shift"]) and len(set(latents["scale"])) == 1
    if not one_scale:
        count = len(latents["scale"])
        architecture = replace(architecture, latents={"shift": [0.0] * count, "scale": [1.0] * count})
    configs = to_configs(architecture, pad_id=tokenizer.pad_id)  # refuses before a weight is read
    own = {name: bundle.part(name) for name in bundle.names}
    settings = {key: value for key, value in bundle.config.items() if key not in NOT_SETTINGS} | nodes
    states = {name: dict(own[name].state) for name in PARTS}
    notes = []
    if padding(tokenizer) != END:
        notes.append(f"the token {padding(tokenizer)!r} pads: diffusers reads it so in a prompt, too")
    if not one_scale:
        states["autoencoder"] = folded(states["autoencoder"], latents)
        notes.append("the latents' shifts and scales went into the autoencoder's weights: its scale is now 1")
    if states["text_encoder"].pop("projection.weight", None) is not None:
        notes.append("the text encoder's projection was left out, since a denoiser does not read it")
    guidance = str(nodes["guidance"]["_target_"]).rpartition(".")[2]
    if guidance != "cfg":
        notes.append(f"guidance {guidance} was left out: diffusers only has a guidance scale")
    return Export(
        architecture=architecture,
        configs=configs,
        states=states,
        tokenizer=tokenizer,
        own=Imported(parts=own, settings=settings),
        notes=notes,
        results=results_of(bundle.path, bundle.sha256),
    )


def write_diffusers(export: Export, out: Path, *, dtype: torch.dtype) -> Path:
    """Writes the folder that StableDiffusionPipeline.from_pretrained reads; NameTaken if it exists."""
    linear, stem = export.architecture.linear_projection, "diffusion_pytorch_model"
    networks = {  # by the file: our part, and the names in it
        f"unet/{stem}": ("backbone", unet_rules(linear_projection=linear)),
        f"vae/{stem}": ("autoencoder", vae_rules()),
        "text_encoder/model": ("text_encoder", text_rules()),
    }
    record, tensors = export.record(dtype)
    size = sum(_bytes(state, dtype) for state in (*export.states.values(), tensors))
    with new_folder(out, size=size) as folder:
        for name, config in export.configs.items():
            (folder / name).mkdir(parents=True)
            file = "scheduler_config" if name == "scheduler" else "config"
            _write_json(folder / name / f"{file}.json", config)
        for file, (part, rules) in networks.items():
            _save(folder / f"{file}.safetensors", translate(export.states[part], reverse(rules)), dtype)
        write_vocabulary(export.tokenizer, folder / "tokenizer")
        _write_json(folder / INDEX, _index(export.configs))
        guidance = _scale(export.own.settings["guidance"])  # 1 without guidance
        usage = USAGE.format(steps=export.architecture.sampler["steps"], guidance=guidance)
        options = {"usage": usage, "library": "diffusers", "notes": export.notes, "results": export.results}
        card = model_card({**export.own.settings, "parts": export.own.parts}, **options)
        (folder / CARD).write_text(card, encoding="utf-8")
        _write_json(folder / RECORD, record)
        if tensors:
            _save(folder / TENSORS, tensors, dtype)
    return out


def write_single_file(export: Export, out: Path, *, dtype: torch.dtype) -> Path:
    """One safetensors file with CompVis' names; its header carries the configs and the tokenizer."""
    if export.architecture.backbone["transformer"].get("pool_context"):
        raise UserError("transformer.pool_context=True has no names in CompVis' files: write to=diffusers")
    record, tensors = export.record(dtype)
    state = {f"{OWN}{name}": tensor for name, tensor in tensors.items()}
    for part, (prefix, rules) in compvis_networks(export.architecture).items():
        theirs = translate(export.states[part], reverse(rules))
        state |= {f"{prefix}{name}": tensor for name, tensor in theirs.items()}
    if out.exists():
        raise NameTaken(f"{out} exists already: name another or remove it")
    with drafting(out, size=_bytes(state, dtype)) as file:
        _save(file, state, dtype, header(export.configs, export.tokenizer, record))
    return out


def folded(state: State, latents: Mapping[str, list[float]]) -> dict[str, Tensor]:
    """The autoencoder whose own latents are (z - shift) * scale, so that their scale is 1.

    This is exact but for rounding, since both layers at the latents are 1x1 convolutions: the means are
    shifted and scaled, the log-variances grow by 2 log(scale), and the decoder's first layer reverts it.
    """
    shift, scale = (torch.tensor(latents[name], dtype=torch.float64) for name in ("shift", "scale"))
    factor = torch.cat([scale, torch.ones_like(scale)])
    offset = torch.cat([-shift * scale, 2 * scale.log()])
    names = [f"{layer}.{kind}" for layer in ("to_moments", "from_latents") for kind in ("weight", "bias")]
    read, read_bias, write, write_bias = (state[name].double() for name in names)
    changed = (
        read * factor[:, None, None, None],
        read_bias * factor + offset,
        write / scale[None, :, None, None],
        write_bias + write[:, :, 0, 0] @ shift,
    )
    return {**state, **{name: x.to(state[name].dtype) for name, x in zip(names, changed, strict=True)}}


def _save(path: Path, state: State, dtype: torch.dtype, metadata: dict[str, str] | None = None) -> None:
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}
    save_tensors(tensors, path, metadata={"format": "pt"} | (metadata or {}))


def _bytes(state: State, dtype: torch.dtype) -> int:
    return sum(tensor.numel() * dtype.itemsize for tensor in state.values())


def _index(configs: Mapping[str, Config]) -> Config:
    classes = {name: config.get("_class_name", "CLIPTextModel") for name, config in configs.items()}
    classes["tokenizer"] = "CLIPTokenizer"
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS,
        **{name: [LIBRARIES.get(name, "diffusers"), kind] for name, kind in sorted(classes.items())},
        **{name: [None, None] for name in ABSENT},
        "requires_safety_checker": False,
    }


def _scale(guidance: Mapping[str, Any]) -> float:
    """The scale of a guidance, which may be nested in another one."""
    within = guidance.get("within")
    return float(guidance.get("scale", _scale(within) if isinstance(within, Mapping) else 1.0))


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def results_of(bundle: Path, sha256: str) -> dict[str, Any] | None:
    """The measured numbers of a bundle, from its folder or `evaluation` beside it; None if there are none."""
    for place in PLACES:
        try:
            found = read_json(bundle / place)
        except (OSError, ValueError):
            continue
        own = found.get("bundle") if isinstance(found, Mapping) else None
        if isinstance(own, Mapping) and own.get("sha256") == sha256:
            return dict(found)
    return None
