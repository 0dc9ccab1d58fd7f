"""The way out: a bundle as a diffusers folder, as one file with CompVis' names, or as ONNX graphs.

What the form has no place for is refused before anything is written, or kept in a record beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError, Part
from ldm.checkpoints.bundle_writer import CARD, model_card, results_of
from ldm.exchange.compvis import OWN, header
from ldm.exchange.compvis import networks as compvis_networks
from ldm.exchange.diffusers import Architecture, from_configs, to_configs
from ldm.exchange.folder import END, INDEX, padding, write_vocabulary
from ldm.exchange.imported import RECORD, TENSORS, Imported, make_record
from ldm.exchange.keymap import Rule, reverse, translate
from ldm.exchange.names import text_rules, unet_rules, vae_rules
from ldm.generators.diffusion_bundle import sampling_nodes
from ldm.io.fields import Fields
from ldm.io.writing import NameTaken, drafting, new_folder, save_tensors
from ldm.tokenizers import Tokenizer

Config = dict[str, Any]
State = Mapping[str, Tensor]

DIFFUSERS = "0.42.1"  # the version whose files these are
PARTS = ("backbone", "autoencoder", "text_encoder")
NOT_SETTINGS = ("format", "parts", "tokenizer")
LIBRARIES = {"text_encoder": "transformers", "tokenizer": "transformers"}
ABSENT = ("feature_extractor", "image_encoder", "safety_checker")
USAGE = """```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("<this folder>")
pipeline("a red apple", num_inference_steps={steps}, guidance_scale={guidance:g}).images[0]
```

The folder has no safety checker. `ldm.json` keeps what diffusers has no place for:
`python -m ldm.export from=<this folder> out=<bundle>` makes the bundle again."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A pipeline ready to be written in either form."""

    architecture: Architecture  # with latents of one scale
    configs: dict[str, Config]  # the same as diffusers' configs, under the names of its folders
    states: Mapping[str, State]  # weights of backbone, autoencoder and text encoder, under our names
    tokenizer: Tokenizer
    guidance: float  # the bundle's own scale, 1 where it has none
    own: Imported  # the bundle's settings and parts as they are
    notes: list[str] = field(default_factory=list)  # what has no place, and what was changed to fit
    results: Mapping[str, Any] | None = None  # numbers that were measured of the bundle, for the model card

    def record(self, dtype: torch.dtype) -> tuple[Config, dict[str, Tensor]]:
        """What the bundle says beyond the files that are written, and the tensors that they lack."""
        exported = from_configs({name: Fields(name, config) for name, config in self.configs.items()})
        parts = {name: Part(spec=getattr(exported, name), state=self.states[name]) for name in PARTS}
        return make_record(self.own, Imported(parts=parts, settings=exported.settings()), dtype)


def open_export(bundle: Bundle, options: Mapping[str, Any]) -> Export:
    """What of a bundle can be written; an option that diffusers has no place for is refused by its name.

    Args:
        options: `sampler`, `grid` and `steps` to write instead of the bundle's own.
    """
    nodes = sampling_nodes(bundle, options)
    told = Architecture(
        **{name: _spec(bundle, name) for name in PARTS},
        process=bundle.entry("process"),
        sampler=nodes["sampler"],
        latents=bundle.entry("latents"),
        size=bundle.entry("size"),
        linear_projection=bundle.config.get("linear_projection", False),
    )
    tokenizer, count = bundle.tokenizer(), len(told.latents["scale"])
    # StableDiffusionPipeline knows one scale for all channels, and no shift
    one_scale = not any(told.latents["shift"]) and len(set(told.latents["scale"])) == 1
    written = told if one_scale else replace(told, latents={"shift": [0.0] * count, "scale": [1.0] * count})
    configs = to_configs(written, pad_id=tokenizer.pad_id)  # refuses before a weight is read
    own = {name: bundle.part(name) for name in bundle.names}
    settings = {key: value for key, value in bundle.config.items() if key not in NOT_SETTINGS} | nodes
    states = {name: dict(own[name].state) for name in PARTS}
    notes = []
    if padding(tokenizer) != END:
        notes.append(f"the token {padding(tokenizer)!r} pads: diffusers reads it otherwise in a prompt, too")
    if not one_scale:
        states["autoencoder"] = folded(states["autoencoder"], told.latents)
        notes.append("the latents' shifts and scales went into the autoencoder's weights: its scale is now 1")
    if states["text_encoder"].pop("projection.weight", None) is not None:
        notes.append("the text encoder's projection was left out: a denoiser doesn't read it")
    guidance = str(nodes["guidance"]["_target_"]).rpartition(".")[2]
    if guidance != "cfg":
        notes.append(f"guidance {guidance} has no place there: diffusers guides by a scale alone")
    return Export(
        architecture=written,
        configs=configs,
        states=states,
        tokenizer=tokenizer,
        guidance=_scale(nodes["guidance"]),
        own=Imported(parts=own, settings=settings),
        notes=notes,
        results=results_of(bundle.path, bundle.sha256),
    )


def write_diffusers(export: Export, out: Path, *, dtype: torch.dtype) -> Path:
    """The folder that StableDiffusionPipeline.from_pretrained reads; NameTaken if `out` is there already."""
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
            _save(folder / f"{file}.safetensors", _theirs(export.states[part], rules), dtype)
        write_vocabulary(export.tokenizer, folder / "tokenizer")
        _write_json(folder / INDEX, _index(export.configs))
        (folder / CARD).write_text(_card(export), encoding="utf-8")
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
        state |= {f"{prefix}{name}": x for name, x in _theirs(export.states[part], rules).items()}
    if out.exists():
        raise NameTaken(f"{out} exists already: name another or remove it")
    with drafting(out, size=_bytes(state, dtype)) as file:
        _save(file, state, dtype, header(export.configs, export.tokenizer, record))
    return out


def folded(state: State, latents: Mapping[str, list[float]]) -> dict[str, Tensor]:
    """The autoencoder whose own latents are (z - shift) * scale, so that their scale is 1.

    Both maps that touch the latents are 1x1 convolutions, so this is exact but for rounding: the means are
    shifted and scaled, the log-variances grow by 2 log(scale), the decoder's first map undoes it.
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


def _card(export: Export) -> str:
    """The model card of a folder for diffusers."""
    usage = USAGE.format(steps=export.architecture.sampler["steps"], guidance=export.guidance)
    config = {**export.own.settings, "parts": export.own.parts}
    return model_card(config, usage=usage, library="diffusers", notes=export.notes, results=export.results)


def _spec(bundle: Bundle, name: str) -> Config:
    if name not in bundle.names:
        held = ", ".join(bundle.names)
        raise BundleError(f"bundle {bundle.path} can't be exported: no {name} among {held}")
    return dict(bundle.config["parts"][name]["spec"])


def _theirs(state: State, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Our weights under their names; what they are read back as must be the same."""
    written = translate(state, reverse(rules))
    back = translate(written, rules, expected={name: tensor.shape for name, tensor in state.items()})
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    return written


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
    """The scale of a guidance, also where it lies inside another one."""
    within = guidance.get("within")
    return float(guidance.get("scale", _scale(within) if isinstance(within, Mapping) else 1.0))


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
