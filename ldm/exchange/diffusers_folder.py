"""Folders of diffusers and transformers: a pipeline with its parts, or one network with its config."""

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.exchange.architecture import CONFIGS, from_configs
from ldm.exchange.clip_import import import_text, import_transformers, import_vision, text_fit
from ldm.exchange.dialects.diffusers import (
    has_early_names,
    unet_rules,
    unet_spec,
    vae_latents,
    vae_rules,
    vae_spec,
)
from ldm.exchange.dialects.schedulers import differences
from ldm.exchange.dialects.vocabulary import read_vocabulary
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.kinds import refuse_class
from ldm.exchange.record import RECORD, TENSORS, restored
from ldm.exchange.weights import Weights
from ldm.io.fields import Fields
from ldm.io.reading import read_json

INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS, VARIANTS = (".safetensors", ".bin"), ("", ".fp16", ".bf16")
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
READ = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a whole pipeline's."""
    return (folder / INDEX).is_file()


def import_pipeline(folder: Path, *, text_state: str | None) -> Imported:
    """All that generates pictures: three networks, tokenizer, process and sampler.

    Raises:
        UserError: a pipeline of another kind, or a part that is missing, damaged or not covered.
    """
    index = Fields.read(folder / INDEX)
    kind = index.values.get("_class_name")
    refuse_class(folder, kind)
    if kind not in PIPELINES:
        raise UserError(f"{folder} is a {kind}: only {' and '.join(PIPELINES)} have our three networks")
    configs = {name: Fields.read(_config(folder, name)) for name in CONFIGS}
    told = from_configs(configs)
    text = text_fit(told.text_encoder, find_weights(folder / "text_encoder"), state=text_state)
    fits = {
        "backbone": _unet(
            find_weights(folder / "unet"), told.backbone, linear_projection=told.linear_projection
        ),
        "autoencoder": _vae(find_weights(folder / "vae"), told.autoencoder),
        "text_encoder": text,
    }
    tokenizer = read_vocabulary(
        folder / "tokenizer",
        context_length=text.spec["context_length"],
        vocab_size=text.spec["vocab_size"],
    )
    held = {key for key, value in index.values.items() if isinstance(value, list) and value[:1] != [None]}
    found = Imported.of(
        fits,
        tokenizer=tokenizer,
        settings=told.settings(),
        left_out=sorted(held - READ) + differences(configs["scheduler"]),
        notes=_other_class(configs["scheduler"], index),
    )
    record, tensors = folder / RECORD, folder / TENSORS
    if not record.is_file():
        return found
    kept = Weights(tensors).load() if tensors.is_file() else {}
    return restored(found, read_json(record), kept, where=record)


def import_network(folder: Path, *, text_state: str | None) -> Imported:
    """The one network of a folder with a config.json.

    Raises:
        UserError: a network of another kind, or weights that are missing, damaged or don't fit.
    """
    config = Fields.read(folder / "config.json")
    kind = str(config.values.get("_class_name") or config.values.get("model_type"))
    refuse_class(folder, kind)
    if kind not in NETWORKS:
        raise UserError(
            f"{folder} holds a {kind}: only {', '.join(NETWORKS)} are covered, or a whole pipeline"
        )
    return NETWORKS[kind](find_weights(folder), config, text_state)


def find_weights(folder: Path) -> Weights:
    """The weights in a folder: safetensors before torch's own, the plain file before a variant in 16 bits.

    Raises:
        UserError: there are none.
    """
    for ending, variant, stem in product(ENDINGS, VARIANTS, STEMS):
        single, cut = f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json"
        for path in (folder / single, folder / cut, folder / f"{single}.index.json"):
            if path.is_file():
                note = f"{folder.name}/{path.name} was read: there is no file without {variant}"
                return Weights(path, note=note if variant else "")
    raise UserError(
        f"{folder} lacks its weights: hf download <owner>/<name> --include '{folder.name}/*' "
        f"--local-dir {folder.parent}"
    )


def _config(folder: Path, name: str) -> Path:
    path = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    if not path.is_file():
        raise UserError(
            f"{folder} lacks {path.relative_to(folder)}: hf download <owner>/<name> --include '{name}/*' "
            f"--local-dir {folder}"
        )
    return path


def _other_class(scheduler: Fields, index: Fields) -> list[str]:
    """A sentence where the index names another scheduler than the scheduler's own config does."""
    entry, own = index.values.get("scheduler"), scheduler.values.get("_class_name")
    named = entry[-1] if isinstance(entry, list) and entry else None
    if named in (None, own) or own is None:
        return []
    return [f"{INDEX} names a {named}, scheduler_config.json a {own}: the latter was read"]


def _unet(weights: Weights, spec: Mapping[str, Any], *, linear_projection: bool) -> Fit:
    return Fit(spec=spec, weights=weights, rules=unet_rules(linear_projection=linear_projection))


def _vae(weights: Weights, spec: Mapping[str, Any]) -> Fit:
    return Fit(spec=spec, weights=weights, rules=vae_rules(early=has_early_names(weights.outline)))


def _import_unet(weights: Weights, config: Fields, text_state: str | None) -> Imported:
    linear = config.flag("use_linear_projection")
    fit = _unet(weights, unet_spec(config), linear_projection=linear)
    return Imported.of({"backbone": fit}, settings={"linear_projection": linear})


def _import_vae(weights: Weights, config: Fields, text_state: str | None) -> Imported:
    fit = _vae(weights, vae_spec(config))
    return Imported.of({"autoencoder": fit}, settings={"latents": vae_latents(config)})


NETWORKS: dict[str, Callable[[Weights, Fields, str | None], Imported]] = {  # by class or type of model
    "UNet2DConditionModel": _import_unet,
    "AutoencoderKL": _import_vae,
    "clip_text_model": lambda weights, config, state: import_text(weights, config, state=state),
    "clip_vision_model": lambda weights, config, state: import_vision(weights, config),
    "clip": lambda weights, config, state: import_transformers(weights, config),
}
