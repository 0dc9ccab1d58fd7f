"""Pictures from prompts: `python -m ldm.sample 'prompts=["red apple","a cat with a hat"]'`."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm import UserError
from ldm.config import entry, overrides
from ldm.sampling.jobs import asked_jobs

SHEET_LIMIT = 512  # pictures on one sheet: the first ones
OPTIONS = ("sampler", "guidance", "grid", "steps", "scale", "precision", "generator")  # of a generator
WITH_AGAIN = ("again", "out", "overwrite")  # and where the files lie that it was generated from


@entry("sample")
def main(config: DictConfig) -> None:
    """Generates the pictures of a command, or reproduces one from the settings that it stores."""
    if config.again is None:
        generate(config)
    else:
        reproduce(config)


def generate(config: DictConfig) -> None:
    """Generates all pictures of a command, saves each at once, and at last a contact sheet."""
    written = OmegaConf.to_container(config, resolve=False)  # a ${...} in a prompt is text, not a reference
    jobs = asked_jobs(written, seed=config.seed)

    from tqdm import tqdm

    from ldm.checkpoints.bundle import Bundle
    from ldm.generators.generator import open_generator
    from ldm.io.pictures import save_sheet
    from ldm.sampling.batches import batches, check_jobs, generate_batch
    from ldm.sampling.output import SHEET, check_output, clear, open_output, save

    options = {name: written.get(name) for name in OPTIONS} | written["options"]
    opened = open_generator(Bundle.open(config.bundle), **options)
    for line in check_jobs(opened, jobs):
        print(line)
    out = open_output(config.out, overwrite=config.overwrite)
    sheet = Path(config.sheet or out / SHEET)
    check_output(out, jobs, sheet)
    clear(out)
    shown = {job.name: None for job in jobs[:SHEET_LIMIT]}  # name -> picture
    with tqdm(total=len(jobs), desc="sampling", unit="picture", disable=None) as bar:
        for batch in batches(jobs, size=config.batch_size):
            for sample in generate_batch(opened, batch):
                save(sample, out)
                if sample.job.name in shown:
                    shown[sample.job.name] = sample.image
                bar.update()
    most = max(Counter((job.prompt, job.image) for job in jobs).values())  # a row per prompt if that is many
    save_sheet(list(shown.values()), sheet, columns=min(8, most if most > 1 else len(jobs)))
    seen = "all" if len(jobs) == len(shown) else f"the first {len(shown)}"
    print(f"{len(jobs)} pictures in {out}; {seen} on one sheet: {sheet}")


def reproduce(config: DictConfig) -> None:
    """Generates one picture from its record, and prints whether it is the same."""
    typed = {each.lstrip("+~").partition("=")[0] for each in overrides()}

    from ldm.io.pictures import save_picture
    from ldm.sampling.batches import check_jobs, generate_batch
    from ldm.sampling.output import check_place, open_output
    from ldm.sampling.record import FILES, WEAK, chunks, compared, read_facts, reopen

    named = {"guidance"} if WEAK in typed else set()  # the key is there once its group is chosen
    if extra := sorted(typed - {*WITH_AGAIN, *FILES, *named}):
        raise UserError(f"again= takes all settings from the picture: leave out {', '.join(extra)}")
    path, given = Path(config.again), typed & {*FILES}
    facts = read_facts(path)
    opened, job = reopen(path, facts, {name: str(OmegaConf.select(config, name)) for name in given})
    file = open_output(config.out, overwrite=True) / f"{path.stem}_again.png"
    if file.exists() and not config.overwrite:
        raise UserError(f"{file} is there already: name another folder or set overwrite=true")
    check_place(file)
    for line in check_jobs(opened, [job]):
        print(line)
    # in a batch of the same size and at the same place in it: float sums are rounded as then
    sample = generate_batch(opened, [job] * facts["batch"]["size"])[facts["batch"]["place"]]
    save_picture(sample.image, file, texts=chunks(sample.facts))
    print(f"{file}: {compared(sample.image, path, facts)}")


if __name__ == "__main__":
    main()
