"""Pictures from prompts: `python -m ldm.sample 'prompts=["red apple","a cat with a hat"]'`."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm import UserError
from ldm.config import entry, overrides
from ldm.io.links import check_no_link
from ldm.sampling.jobs import Job, asked_jobs

SHEET_LIMIT = 512  # pictures on one sheet: the first ones
OPTIONS = ("sampler", "guidance", "grid", "steps", "scale", "precision", "generator")  # of a generator
WITH_AGAIN = ("again", "bundle", "out", "overwrite")


@entry("sample")
def main(config: DictConfig) -> None:
    """Draws what is asked for, or a picture that is there once more."""
    if config.again is None:
        draw(config)
    else:
        draw_again(config)


def draw(config: DictConfig) -> None:
    """Draws all pictures of a command, saves each when it is there, and at last a sheet of them."""
    written = OmegaConf.to_container(config, resolve=False)  # a ${...} in a prompt is text, not a reference
    jobs = asked_jobs(written, seed=config.seed)
    shown = {job.name for job in jobs[:SHEET_LIMIT]}

    from tqdm import tqdm

    from ldm.checkpoints.bundle import Bundle
    from ldm.generators.generator import open_generator
    from ldm.io.pictures import save_sheet
    from ldm.sampling.batches import batches, check_jobs, cut_lines, generate_batch
    from ldm.sampling.inputs import check_inputs
    from ldm.sampling.output import SHEET, Saver, check_folder

    opened = open_generator(Bundle.open(config.bundle), **{name: written.get(name) for name in OPTIONS})
    check_jobs(opened, jobs)
    for line in (*check_inputs(jobs, size=opened.generator.size), *cut_lines(opened, jobs)):
        print(line)
    out = open_output(config.out, overwrite=config.overwrite)
    check_folder(out, jobs)
    sheet = sheet_at(config.sheet or out / SHEET)
    saver = Saver(out, opened)
    images = {}
    with tqdm(total=len(jobs), desc="drawing", unit="picture", disable=None) as bar:
        for batch in batches(jobs, size=config.batch_size):
            drawn = generate_batch(opened, batch)
            saver.save(batch, drawn)
            images |= {job.name: image for job, image in zip(batch, drawn, strict=True) if job.name in shown}
            bar.update(len(batch))
    save_sheet([images[job.name] for job in jobs[:SHEET_LIMIT]], sheet, columns=columns(jobs))
    seen = "all" if len(jobs) == len(shown) else f"the first {len(shown)}"
    print(f"{len(jobs)} pictures in {out}; {seen} on one sheet: {sheet}")


def draw_again(config: DictConfig) -> None:
    """Generates one picture from its record, and prints whether it is the same."""
    typed = {each.lstrip("+~").partition("=")[0] for each in overrides()} - set(WITH_AGAIN)
    if typed:
        raise UserError(f"again= takes all from the picture: leave out {', '.join(sorted(typed))}")

    from ldm.io.pictures import save_picture
    from ldm.sampling.batches import cut_lines
    from ldm.sampling.output import check_place
    from ldm.sampling.record import chunks
    from ldm.sampling.reproduce import Reproduction, compared

    moved = any(each.startswith("bundle=") for each in overrides())
    earlier = Reproduction.open(Path(config.again), bundle=config.bundle if moved else None)
    file = open_output(config.out, overwrite=True) / f"{earlier.path.stem}_again.png"
    if file.exists() and not config.overwrite:
        raise UserError(f"{file} is there already: name another folder or set overwrite=true")
    check_place(file)
    for line in cut_lines(earlier.opened, [earlier.job]):
        print(line)
    image, facts = earlier()
    save_picture(image, file, texts=chunks(facts))
    print(f"{file}: {compared(image, earlier)}")


def open_output(folder: str, *, overwrite: bool) -> Path:
    """The folder for the pictures, made if it is missing.

    Raises:
        UserError: it is a file, can't be written to, or holds pictures that must not be overwritten.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file: name a folder")
    if out.is_dir() and not overwrite and any(out.glob("*.png")):
        raise UserError(f"out={out} holds pictures already: name another folder or set overwrite=true")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise UserError(f"out={out} can't be written to: name another folder")
    return out


def sheet_at(sheet: str | Path) -> Path:
    """Where the sheet goes.

    Raises:
        UserError: its folder is not there, or it is a link.
    """
    path = Path(sheet)
    if not path.parent.is_dir():
        raise UserError(f"sheet={path} lies in no folder that is there: make {path.parent} first")
    check_no_link(path)
    return path


def columns(jobs: Sequence[Job]) -> int:
    """Columns of the sheet: a row a prompt where prompts have several pictures, 8 at most."""
    most = max(Counter((job.prompt, job.image) for job in jobs).values())
    return min(8, most if most > 1 else len(jobs))


if __name__ == "__main__":
    main()
