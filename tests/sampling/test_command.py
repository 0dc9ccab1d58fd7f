"""Facts about `ldm.sample` from pictures, with masks and from lists, and about reproducing a picture."""

import json
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm import UserError
from ldm.io.reading import hash_file
from ldm.sampling.batches import batches
from ldm.sampling.jobs import Job
from ldm.sampling.record import read_facts, reopen


@pytest.fixture
def run(command, bundle_path, tmp_path):
    """`run(*arguments, status=0)`: the command with the tiny bundle and two steps, and what it printed."""

    def call(*arguments, status=0):
        own = any(each.startswith(("again", "bundle")) for each in arguments)
        chosen = [] if own else [f"bundle={bundle_path}", "steps=2"]
        return command("ldm.sample", f"out={tmp_path / 'out'}", *chosen, *arguments, status=status)

    return call


@pytest.fixture
def sample(run, tmp_path):
    """`sample(*arguments)`: the same; returns its folder."""

    def call(*arguments):
        run(*arguments)
        return tmp_path / "out"

    return call


@pytest.fixture(scope="module")
def drawn(command, bundle_path, tmp_path_factory):
    """A picture of the command. Read it, never write to it."""
    out = tmp_path_factory.mktemp("drawn")
    command("ldm.sample", f"bundle={bundle_path}", f"out={out}", "prompts=[a hat]", "per_prompt=1", "steps=1")
    return out / "0000.png"


@pytest.fixture
def refused(run):
    """`refused(*arguments)`: the line with which the command ends."""

    def call(*arguments):
        (line,) = run(*arguments, status=1).err.splitlines()
        return line

    return call


@pytest.fixture
def draw_picture(tmp_path):
    """`draw_picture(name, size)`: a PNG of noise; of a mask, `left` is black."""

    def call(name, *, size=(16, 16), left=None):
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        if left is not None:
            pixels[:] = 255
            pixels[:, :left] = 0
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        return path

    return call


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def lines(out):
    return [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]


def test_a_mask_keeps_the_bytes_of_a_picture_and_redraws_the_rest(sample, draw_picture):
    image, mask = draw_picture("a.png"), draw_picture("mask.png", left=7)
    out = sample("prompts=[a hat]", f"image={image}", f"mask={mask}", "per_prompt=2")
    for name in ("0000.png", "0001.png"):
        assert np.array_equal(pixels(out / name)[:, :7], pixels(image)[:, :7])
        assert (pixels(out / name)[:, 7:] != pixels(image)[:, 7:]).mean() > 0.5
    assert [(line["strength"], line["mask"]["file"]) for line in lines(out)] == [(1.0, "mask.png")] * 2


def test_a_picture_of_another_size_is_prepared_like_training_pictures_and_that_is_said(
    run, draw_picture, tmp_path
):
    image, black = draw_picture("a.png", size=(40, 24)), draw_picture("mask.png", size=(40, 24), left=40)
    said = run("prompts=[a hat]", f"image={image}", f"mask={black}", "per_prompt=1").out
    assert "a.png: the largest square in the middle, resized to 16 x 16 px" in said
    with Image.open(image) as picture:
        expected = picture.crop((8, 0, 32, 24)).resize((16, 16), Image.Resampling.BICUBIC)
    # PIL rounds its weights to 8 bits of fraction
    found = pixels(tmp_path / "out" / "0000.png").astype(int)
    assert np.abs(found - np.array(expected)).max() <= 1


def test_a_mask_must_be_drawn_over_its_picture(refused, draw_picture, tmp_path):
    image, mask = draw_picture("a.png"), draw_picture("mask.png", size=(16, 20), left=4)
    sentence = refused("prompts=[a hat]", f"image={image}", f"mask={mask}")
    assert f"mask={mask} has 16 x 20 pixels and image={image} 16 x 16" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "is no picture"), (b"<html>", "is no picture"), (None, "is not there")]
)
def test_a_picture_that_is_none_is_refused_and_nothing_is_made(refused, tmp_path, content, sentence):
    image = tmp_path / "a.png"
    if content is not None:
        image.write_bytes(content)
    assert sentence in refused("prompts=[a hat]", f"image={image}")
    assert not (tmp_path / "out").exists()


def test_a_list_gives_for_each_line_what_a_command_of_its_own_would(sample, draw_picture, tmp_path):
    draw_picture("a.png")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(
        "prompt,negative,seed,image,strength,scale,name\n"
        "red apple,,3,,,,apple\n"
        "a cat,a hat,4,,,5,cat\n"
        "green apple,,5,a.png,0.5,,green\n"
    )
    out = sample(f"prompts={prompts}", "per_prompt=1", f"sheet={tmp_path / 'all.png'}")
    together = {name: pixels(out / f"{name}.png") for name in ("apple", "cat", "green")}
    assert (tmp_path / "all.png").is_file()
    assert not (out / "sheet.png").exists()
    shutil.rmtree(out)
    alone = (
        ("apple", "prompts=[red apple]", "seed=3"),
        ("cat", "prompts=[a cat]", "negative=a hat", "seed=4", "scale=5"),
        ("green", "prompts=[green apple]", "seed=5", f"image={tmp_path / 'a.png'}", "strength=0.5"),
    )
    for name, *arguments in alone:
        sample(*arguments, "per_prompt=1")
        assert np.array_equal(pixels(out / "0000.png"), together[name])


def test_a_line_is_refused_with_its_number_before_anything_is_made(refused, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fine\n" + "x" * 10_001)
    assert f"{prompts}, line 2: a prompt of 10001 characters is too long" in refused(f"prompts={prompts}")
    assert not (tmp_path / "out").exists()


def test_batches_hold_what_one_call_can_generate_and_no_more(tmp_path):
    (tmp_path / "a.png").touch()
    kinds = [{}, {"negative": "x"}, {"image": tmp_path / "a.png"}, {"scale": 2.0}]
    jobs = [Job(prompt="a", seed=n, name=f"{n}", **kinds[n % 4]) for n in range(20)]
    found = list(batches(jobs, size=3))
    assert sorted(int(job.name) for batch in found for job in batch) == list(range(20))
    assert [len(batch) for batch in found] == [3, 2] * 4
    assert all(len({int(job.name) % 4 for job in batch}) == 1 for batch in found)


def test_prompts_that_the_model_does_not_read_whole_are_told(run, tmp_path):
    long = "a red apple on a table " * 12
    said = run(f'prompts=["{long}cat"]', "per_prompt=1", f"negative={long}", "steps=1").out
    told = [line for line in said.splitlines() if "tokens" in line]
    facts = read_facts(tmp_path / "out" / "0000.png")
    assert facts["prompt"] == f"{long}cat"
    count = facts["tokens"]["prompt"]
    assert (count > 60, facts["tokens"]["read"]) == (True, 16)
    assert (facts["tokens"]["negative"], facts["tokens"]["negative_read"]) == (count - 1, 16)
    assert told[0].startswith(f"prompt has {count} tokens, the model reads 16: what follows '...")
    assert told[0].endswith("' is not seen")
    assert told[1].startswith("negative prompt has ")
    (tmp_path / "list.txt").write_text(f"a cat\n{long}\na dog\n{long}{long}\n")
    said = run(f"prompts={tmp_path / 'list.txt'}", "per_prompt=2", "steps=1", "overwrite=true").out
    (line,) = [line for line in said.splitlines() if "tokens" in line]
    assert line.startswith("2 of 4 prompts (50 %) are cut; the longest, prompt 4, has ")
    tokens = read_facts(tmp_path / "out" / "0000.png")["tokens"]
    assert tokens["prompt"] == tokens["read"] < 16


def test_a_picture_tells_programs_and_people_how_it_was_made(sample, draw_picture, bundle_path):
    image = draw_picture("a.png")
    prompt = "grüner Apfel 🍏"
    out = sample(
        f'prompts=["{prompt}"]', "negative=a hat", f"image={image}", "per_prompt=1", "seed=9", "scale=4"
    )
    facts = read_facts(out / "0000.png")
    assert lines(out) == [{"file": "0000.png"} | facts]
    assert facts["prompt"] == prompt
    assert (facts["negative"], facts["seed"], facts["steps"], facts["scale"]) == ("a hat", 9, 2, 4.0)
    assert (facts["size"], facts["strength"]) == ([16, 16], 0.6)
    assert facts["bundle_path"] == f".../{bundle_path.name}"
    assert facts["image"] == {"file": "a.png", "sha256": hash_file(image)}
    assert str(image.parent) not in (out / "0000.png").read_bytes().decode("latin-1")
    with Image.open(out / "0000.png") as picture:
        told = picture.text["parameters"]
    assert told.splitlines()[:2] == [prompt, "Negative prompt: a hat"]
    for part in ("Steps: 2", "Sampler: dpmpp_2m", "CFG scale: 4.0", "Seed: 9", "Size: 16x16", "ldm 0.1.0"):
        assert part in told


@pytest.mark.parametrize(
    "kind",
    [
        (),
        ("+sampler=ddpm",),
        ("+sampler=ddim", "+grid=karras", "grid.rho=5.0"),
        ("+guidance=cfg_interval", "scale=2"),
        ("image", "mask"),
    ],
)
def test_a_picture_is_reproduced_to_the_byte_from_what_it_carries(
    sample, run, draw_picture, bundle_path, kind
):
    arguments, files = ["prompts=[red apple,a cat]", "negative=fog", "seed=5", "per_prompt=1"], ()
    if kind[:1] == ("image",):
        files = (f"image={draw_picture('a.png')}", f"mask={draw_picture('mask.png', left=5)}")
        kind = (*files, "strength=0.8")
    out = sample(*arguments, *kind)
    said = run(f"again={out / '0001.png'}", f"bundle={bundle_path}", *files).out
    assert f"every pixel is that of {out / '0001.png'}" in said
    assert (out / "0001_again.png").read_bytes() == (out / "0001.png").read_bytes()


def test_a_picture_of_the_earlier_generator_is_reproduced_by_it(sample, run, bundle_path, tmp_path):
    arguments = ("prompts=[a hat]", "seed=5", "per_prompt=1", "+sampler=ddpm")
    new = pixels(sample(*arguments) / "0000.png")
    out = sample(*arguments, "generator=mt19937")
    assert not np.array_equal(pixels(out / "0000.png"), new)
    facts = read_facts(out / "0000.png")
    assert facts.pop("generator") == "mt19937"  # records of version 0.1.0 didn't name it
    earlier = tmp_path / "earlier.png"
    told(out / "0000.png", earlier, json.dumps(facts))
    assert f"every pixel is that of {earlier}" in run(f"again={earlier}", f"bundle={bundle_path}").out
    assert read_facts(out / "earlier_again.png")["generator"] == "mt19937"


def test_an_unknown_generator_is_refused_before_anything_is_made(refused, tmp_path):
    sentence = refused("prompts=[a hat]", "generator=dice")
    assert "generator=dice is unknown: write philox4x32-10 or mt19937" in sentence
    assert not (tmp_path / "out").exists()


def test_a_reproduction_is_refused_with_another_bundle_or_a_changed_picture(
    sample, refused, draw_picture, write_tiny_bundle, bundle_path, tmp_path
):
    image, own = draw_picture("a.png"), f"bundle={bundle_path}"
    other = write_tiny_bundle(tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text()) | {"origin": {"experiment": "another"}}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    picture = sample("prompts=[a hat]", f"image={image}", "per_prompt=1") / "0000.png"
    sentence = refused(f"again={picture}", f"bundle={other}")
    assert "was generated by a bundle with sha256" in sentence
    assert f"and {other} has" in sentence
    draw_picture("a.png", left=3)
    assert "was generated without mask: leave it out" in refused(f"again={picture}", own, f"mask={image}")
    sentence = refused(f"again={picture}", own, f"image={image}")
    assert "was generated from a file a.png with sha256" in sentence
    assert f"and {image} is gone or another one: name it with image=" in sentence
    assert "in which folder its bundle .../" in refused(f"again={picture}")
    assert "leave out seed, steps" in refused(f"again={picture}", "steps=3", "seed=1")


def test_a_record_of_an_earlier_version_names_its_picture_by_a_whole_path(
    sample, run, draw_picture, bundle_path, tmp_path
):
    image = draw_picture("a.png")
    picture = sample("prompts=[a hat]", f"image={image}", "per_prompt=1") / "0000.png"
    before = {"bundle_path": str(bundle_path), "image": {"file": str(image), "sha256": hash_file(image)}}
    earlier = told(picture, tmp_path / "earlier.png", before)
    assert f"every pixel is that of {earlier}" in run(f"again={earlier}").out
    assert read_facts(tmp_path / "out" / "earlier_again.png")["image"]["file"] == "a.png"


def test_a_picture_guided_by_a_weak_bundle_names_it_without_its_folder(
    sample, run, refused, write_tiny_bundle, bundle_path, tmp_path
):
    weak = write_tiny_bundle(tmp_path / "secret" / "early")
    arguments = ("+guidance=autoguidance", f"guidance.weak={weak}", "scale=2")
    picture = sample("prompts=[a hat]", "per_prompt=1", *arguments) / "0000.png"
    assert read_facts(picture)["guidance"]["weak"]["path"] == ".../early"
    assert b"secret" not in picture.read_bytes()
    again = (f"again={picture}", f"bundle={bundle_path}", "overwrite=true")
    assert "every pixel is that of" in run(*again, *arguments[:2]).out
    config = yaml.safe_load((weak / "config.yaml").read_text()) | {"origin": {"experiment": "another"}}
    (weak / "config.yaml").write_text(yaml.safe_dump(config))
    assert f"guidance.weak={weak} is another bundle" in refused(*again, *arguments[:2])


def told(source, target, change):
    """A copy of a picture with another record."""
    note = PngInfo()
    note.add_itxt("ldm", change if isinstance(change, str) else json.dumps(read_facts(source) | change))
    with Image.open(source) as picture:
        picture.save(target, pnginfo=note)
    return target


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": "0.0.9"}, "was generated by ldm 0.0.9, and pictures of this ldm"),
        ({"bundle_path": "/nowhere"}, "if its bundle lies elsewhere now, name it with bundle="),
        ({"seed": "x"}, "seed='x' must lie between"),
        ({"generator": "dice"}, "generator=dice is unknown: write philox4x32-10 or mt19937"),
        ({"generator": ["mt19937"]}, "generator=['mt19937'] is unknown"),
        ({"batch": {}}, "its record: batch lacks the field place"),
        ({"batch": {"place": 2, "size": 2}}, "its record: batch: place=2 must be below size=2"),
        ({"batch": {"place": 0, "size": 10**9}}, "size=1000000000 must be a whole number from 1 to 4096"),
        ({"batch": None}, "its record lacks the field batch"),
        ({"stepps": 3}, "has no option 'stepps', did you mean 'steps'?"),
        ({"guidance": {"scale": 3.0}}, "options: guidance lacks the field _target_"),
        (
            {"sampler": {"_target_": "ldm.diffusion.predictions.Flow"}},
            "Flow' is no sampler: take one of conf",
        ),
        (
            {"guidance": {"_target_": "ldm.diffusion.guidance.cfg", "_partial_": True, "scale": 1e30}},
            "scale=1e+30",
        ),
        ({"guidance": "cfg"}, "options: guidance holds a str, expected a mapping"),
        ({"sampler": [1]}, "options: sampler holds a list, expected a mapping"),
        ({"bundle_path": 3}, "its record: bundle_path=3 must be a text"),
        ({"image": "a.png"}, "its record: image holds a str, expected a mapping"),
        ({"image": {"file": 3}}, "its record: image: file=3 must be a text"),
        ({"prompt": "a\0b"}, "contains an unpaired surrogate or a null byte"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ('{"seed": ' + "9" * 400 + "}", "has more than 32 digits"),
        ({"guidance": {"_target_": "os.system"}}, "_target_ 'os.system' is refused"),
        ("{", "is no whole PNG with a record"),
        ("[" * 100_000, "is no whole PNG with a record"),
        ("[]", "its record holds a list, expected a mapping"),
    ],
)
def test_a_record_that_can_not_be_followed_is_refused(drawn, bundle_path, tmp_path, change, sentence):
    there = {"bundle_path": str(bundle_path)}
    path = told(drawn, tmp_path / "b.png", change if isinstance(change, str) else there | change)
    with pytest.raises(UserError) as refused:
        reopen(path, read_facts(path))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"zTXt", b"ldm\0\0" + zlib.compress(bytes(2**26))),
        chunk(b"iTXt", b"ldm\0\1\0\0\0" + zlib.compress(bytes(2**26))),
        chunk(b"IHDR", (10**5).to_bytes(4) + (10**5).to_bytes(4) + b"\x08\x02\0\0\0"),
        chunk(b"IHDR", (9000).to_bytes(4) + (9000).to_bytes(4) + b"\x08\x02\0\0\0"),
    ],
    ids=["zTXt", "iTXt", "100,000 pixels a side", "9,000 pixels a side"],
)
def test_a_picture_that_is_a_bomb_is_refused_before_it_is_unpacked(drawn, tmp_path, bomb):
    content = drawn.read_bytes()
    head, rest = content[:33], content[33:]  # the signature and IHDR
    (tmp_path / "b.png").write_bytes(content[:8] + bomb + rest if b"IHDR" in bomb else head + bomb + rest)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"b\.png is no whole PNG with a record"):
        read_facts(tmp_path / "b.png")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_a_picture_without_a_record_is_refused(refused, draw_picture, tmp_path):
    assert "has no record of how it was made" in refused(f"again={draw_picture('a.png')}")
    assert "there is no picture" in refused(f"again={tmp_path / 'none.png'}")
