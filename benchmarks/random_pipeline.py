"""A pipeline of Stable Diffusion's classes with random weights, as diffusers saves it and as we import it."""

import shutil
from pathlib import Path

import torch

from benchmarks.problem_sizes import ProblemSize

END = 49_407  # id of the end token, which also pads
CONTRAST = 8.0  # of the decoder's last layer: random weights generate grey
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


def make_pipeline(folder: Path, size: ProblemSize) -> None:
    """Writes `folder/diffusers` and `folder/bundle`, unless both are there."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ldm.exchange.folder import import_pipeline, write_vocabulary
    from ldm.exchange.weights import Source
    from ldm.tokenizers.clip_vocabulary import clip_bpe

    if (folder / "bundle").is_dir():
        return
    for left in ("vocabulary", "diffusers"):  # by a run that was ended
        shutil.rmtree(folder / left, ignore_errors=True)
    torch.manual_seed(0)
    write_vocabulary(clip_bpe(context_length=size.context[0], pad_id=END), folder / "vocabulary")
    tokens = {"bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**size.vae()),
        text_encoder=CLIPTextModel(CLIPTextConfig(**size.text_encoder(), **tokens)),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "vocabulary"),
        unet=diffusers.UNet2DConditionModel(**size.unet()),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae.decoder.conv_out.weight.data *= CONTRAST
    pipeline.save_pretrained(folder / "diffusers")
    del pipeline
    source = Source(path=folder / "diffusers", name="diffusers")
    imported = import_pipeline(source.path, text_state="last")
    imported.write(folder / "bundle", source, dtype=torch.float32)
