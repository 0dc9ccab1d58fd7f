"""Kinds of models that are not ours, by a class, a tensor's name or a header; each is refused by name."""

import re
from collections.abc import Iterable, Mapping

from ldm import UserError

XL = "Stable Diffusion XL, which has two text encoders and is told the picture's size"
SD3 = "Stable Diffusion 3, a transformer with three text encoders"
FLUX = "Flux, a transformer with a T5 text encoder"
LORA = "a LoRA, which changes the weights of a model: merge it into its model, then import that"
CONTROLNET = "a ControlNet, which stands beside a model: import the model alone"
INVERSION = "an embedding of textual inversion, one new word and no network"
INPAINTING = "an inpainting model: its U-Net reads a mask and a masked picture beside the latents"
INSTRUCT = "an InstructPix2Pix model: its U-Net reads a second picture beside the latents"
VARIATIONS = "a model of picture variations, which reads CLIP's picture features in place of a prompt"

CLASSES = {  # of diffusers' pipelines and networks, the first that matches
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
ARCHITECTURES = {  # of the header's entries in HEADER
    r".*lora.*|networks\..*|lycoris.*": LORA,
    r".*controlnet.*": CONTROLNET,
    r".*textual-inversion.*": INVERSION,
    r"stable-diffusion-xl.*|sdxl.*": XL,
    r"stable-diffusion-3.*|sd3.*": SD3,
    r"flux.*": FLUX,
}
CHANNELS = {9: INPAINTING, 8: INSTRUCT, 7: "an upscaler: its U-Net reads a small picture beside the latents"}


def refuse_class(where: object, name: object) -> None:
    """Refuses a class of diffusers that is of another kind of model."""
    _refuse(where, [str(name)], CLASSES)


def refuse_names(where: object, names: Iterable[str]) -> None:
    """Refuses a file by the names of its tensors."""
    _refuse(where, names, NAMES)


def refuse_header(where: object, header: Mapping[str, str]) -> None:
    """Refuses a file by what its safetensors header calls it."""
    _refuse(where, [header[key].lower() for key in HEADER if key in header], ARCHITECTURES)


def refuse_channels(where: object, channels: int, *, latents: int) -> None:
    """Refuses a U-Net that reads more than the `latents` channels of a noisy picture.

    Raises:
        UserError: another number of channels.
    """
    if channels != latents:
        kind = CHANNELS.get(channels, "of another kind")
        raise UserError(f"{where} has {channels} input channels, ours has {latents}: it is {kind}")


def _refuse(where: object, names: Iterable[str], kinds: Mapping[str, str]) -> None:
    for name in names:
        kind = next((kind for pattern, kind in kinds.items() if re.fullmatch(pattern, name)), None)
        if kind is not None:
            raise UserError(f"{where} is not covered ({name}): it is {kind}")
