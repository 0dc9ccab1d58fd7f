"""Pictures from prompts: `python -m ldm.sample 'prompts=["red apple","a cat with a hat"]'`."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm.config import entry

PROMPT_LIMIT = 10_000  # characters; a CLIP text encoder reads about 300


@entry("sample")
def main(config: DictConfig) -> None:
    """Draws `num_pictures` pictures, spread evenly over the prompts, and saves each and a sheet of all."""
    written = OmegaConf.to_container(config, resolve=False)  # a ${...} in a prompt is text, not a reference
    prompts, negative = checked_prompts(written["prompts"]), written["negative"]
    per_prompt = max(1, round(config.num_pictures / len(prompts)))

    import torch
    from tqdm import trange

    from ldm.checkpoints.bundle import Bundle
    from ldm.checkpoints.pictures import save_picture, save_sheet
    from ldm.checkpoints.pipeline import open_pipeline

    bundle = Bundle.open(config.bundle)
    options = {name: written.get(name) for name in ("sampler", "guidance", "steps", "scale")}
    pipeline = open_pipeline(bundle, precision=config.precision, **options).with_options(negative=negative)
    jobs = [(prompt, config.seed + i) for prompt in prompts for i in range(per_prompt)]
    out = open_output(config.out, overwrite=config.overwrite)
    images: list[torch.Tensor] = []
    for start in trange(0, len(jobs), config.batch_size, desc="drawing", unit="batch", disable=None):
        chunk = jobs[start : start + config.batch_size]
        images += pipeline([prompt for prompt, _ in chunk], [seed for _, seed in chunk])
    for number, ((prompt, seed), image) in enumerate(zip(jobs, images, strict=True)):
        facts = {"prompt": prompt, "seed": seed, "bundle": bundle.sha256}
        save_picture(image, out / f"{number:04d}.png", facts=facts)
    save_sheet(images, out / "sheet.png", columns=min(8, per_prompt if per_prompt > 1 else len(images)))
    print(f"{len(images)} pictures in {out}; all on one sheet: {out / 'sheet.png'}")


def open_output(folder: str, *, overwrite: bool) -> Path:
    """The folder for the pictures, made if it is missing.

    Raises:
        ValueError: it is a file, can't be written to, or holds pictures that must not be overwritten.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file: name a folder")
    if out.is_dir() and not overwrite and any(out.glob("*.png")):
        raise ValueError(f"out={out} holds pictures already: name another folder or set overwrite=true")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise ValueError(f"out={out} can't be written to: name another folder")
    return out


def checked_prompts(prompts: object) -> list[str]:
    """The prompts as text.

    Raises:
        ValueError: no prompt, one that is not text, is blank or is longer than PROMPT_LIMIT.
    """
    if not isinstance(prompts, list):
        prompts = [prompts]
    if not prompts:
        raise ValueError("prompts is empty: write prompts='[\"a red apple\"]'")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt {prompt!r} holds no text: write one or more words")
        if len(prompt) > PROMPT_LIMIT:
            raise ValueError(f"a prompt of {len(prompt)} characters is too long: the limit is {PROMPT_LIMIT}")
    return [prompt.replace(r"\${", "${") for prompt in prompts]  # Hydra wants an unpaired ${ escaped


if __name__ == "__main__":
    main()
