"""`python -m ldm.evaluate`, run in this process with a bundle of tiny networks that know nothing."""

import csv
import re
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.config import CONF
from ldm.evaluate import check_options
from ldm.evaluation.command import print_cuts
from ldm.evaluation.pictures import Subject
from ldm.evaluation.protocol import Caption
from ldm.evaluation.results import read_results, values
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.io.pictures import to_picture
from ldm.tokenizers.clip_vocabulary import clip_bpe

VISION = {
    "_target_": "ldm.models.clip.VisionTransformer",
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "embed_dim": 8,
}
OF_FILES = ("format", "parts", "tokenizer")  # entries of a bundle's config that writing one makes
SETS = (
    "[{name:train,split:train,captions:6,metrics:[frechet,nearest,clip_score],few:[frechet]},"
    "{name:several,split:val,captions:2,samples:2,metrics:[diversity,perceptual_diversity]}]"
)


@pytest.fixture(scope="module")
def bundle(bundle_path, build_network, tmp_path_factory):
    """The tiny bundle with a vision tower, so that its CLIP can judge."""
    source = Bundle.open(bundle_path)
    vision = Part(spec=VISION, state=build_network(VISION, 7).state_dict())
    settings = {key: value for key, value in source.config.items() if key not in OF_FILES}
    return write_bundle(
        tmp_path_factory.mktemp("judged") / "bundle",
        parts={name: source.part(name) for name in source.names} | {"image_encoder": vision},
        tokenizer=source.tokenizer(),
        settings=settings,
    )


@pytest.fixture
def evaluate(command, bundle, emoji):
    """`evaluate(*arguments, status=0)`: the command with this bundle, and what it printed."""
    chosen = [f"bundle={bundle}", f"data.root={emoji}", "protocol=quick", f"protocol.sets={SETS}"]
    return partial(command, "ldm.evaluate", *chosen, "protocol.extractors.efficientnet_lite0.size=32")


def test_a_weak_bundle_is_in_the_protocol_by_its_content_and_not_by_its_place(
    evaluate, bundle_path, build_network, specs, tmp_path
):
    shutil.copytree(bundle_path, tmp_path / "a")
    shutil.copytree(bundle_path, tmp_path / "b")
    other = Bundle.open(bundle_path)
    state = build_network(specs["backbone"], 9).state_dict()
    write_bundle(
        tmp_path / "c",
        parts={name: other.part(name) for name in other.names}
        | {"backbone": Part(spec=specs["backbone"], state=state)},
        tokenizer=other.tokenizer(),
        settings={name: value for name, value in other.config.items() if name not in OF_FILES},
    )
    sets = "protocol.sets=[{name:train,split:train,captions:4,metrics:[nearest]}]"
    found = {}
    for name in "abc":
        evaluate(
            *("+guidance=autoguidance", f"guidance.weak={tmp_path / name}", "scale=3", "steps=1", sets),
            f"out={tmp_path / 'out' / name}",
        )
        found[name] = read_results(tmp_path / "out" / name / "results.json")
    hashes = {name: document["protocol"]["hash"] for name, document in found.items()}
    assert hashes["a"] == hashes["b"] != hashes["c"]
    for name, document in found.items():
        weak = {"path": f".../{name}", "sha256": Bundle.open(tmp_path / name).sha256}
        assert document["bundle"]["files"] == {"guidance.weak": weak}
        assert document["protocol"]["guidance"] == f"autoguidance(scale=3, weak={weak['sha256']})"


def test_captions_longer_than_the_model_or_a_judge_reads_are_told(tokenizer, capsys):
    subject = Subject(
        kind="bundle", generate=print, path="", sha256="", size=16, generation={}, tokenizer=tokenizer
    )
    judge = SimpleNamespace(tokenizer=clip_bpe())
    captions = [Caption(text=text, key="", row=0) for text in ("cat", "1 " * 20, "1 " * 90)]
    print_cuts({"train": captions, "short": captions[:1]}, subject, {"clip": judge, "inception": object()})
    model, clip = capsys.readouterr().out.splitlines()
    assert model.startswith(
        "train: 2 of 3 captions (67 %) are cut; the longest, caption 3, has 92 tokens, the"
    )
    assert clip.startswith("train read by clip: caption 3 has 92 tokens, the model reads 77: what follows")


def test_a_bundle_becomes_results_report_and_figures_twice_the_same(evaluate, tmp_path):
    found = []
    for name in ("first", "second"):
        evaluate(f"out={tmp_path / name}", "steps=1", "scale=2", "batch_size=5")
        found.append(read_results(tmp_path / name / "results.json"))
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == [
        "report.md",
        "results.json",
        "several.png",
        "train.png",
    ]
    names = {
        "train/fd_efficientnet_lite0",
        "train/r1_efficientnet_lite0",
        "train/own_clip_score",
        "autoencoder/psnr",
        "autoencoder/perceptual_efficientnet_lite0",
        "autoencoder/rfd_efficientnet_lite0",
        "several/diversity_perceptual_efficientnet_lite0",
    }
    assert names <= set(values(found[0]))
    assert values(found[0]) == values(found[1])
    assert found[0]["protocol"]["hash"] == found[1]["protocol"]["hash"]
    drawn = {name: found[0]["protocol"][name] for name in ("batch_size", "generator")}
    assert drawn == {"batch_size": 5, "generator": "philox4x32-10"}
    assert "scale=2" in found[0]["protocol"]["guidance"]
    nearest = "nearest: PictureRecall(features=efficientnet_lite0, ks=[1, 5])"
    assert nearest in found[0]["protocol"]["measures"]
    assert "steps=1" in found[0]["protocol"]["sampler"]


def test_a_folder_with_a_bundles_pictures_gets_the_bundles_numbers(evaluate, bundle, tmp_path):
    one_set = "protocol.sets=[{name:train,split:train,captions:6,metrics:[nearest,diversity],samples:2}]"
    evaluate(one_set, "steps=1", f"out={tmp_path / 'drawn'}")
    evaluate(one_set, f"list_prompts={tmp_path / 'prompts.csv'}")
    with (tmp_path / "prompts.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    pictures = open_latent_diffusion(Bundle.open(bundle), steps=1)(
        [line["caption"] for line in lines], [int(line["seed"]) for line in lines]
    )
    for line, picture in zip(lines, pictures, strict=True):
        path = tmp_path / "theirs" / line["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        to_picture(picture).save(path)
    evaluate(one_set, f"pictures={tmp_path / 'theirs'}", f"out={tmp_path / 'found'}")
    drawn, found = (read_results(tmp_path / name / "results.json") for name in ("drawn", "found"))
    assert values(found) == pytest.approx(
        {name: value for name, value in values(drawn).items() if name.startswith("train/")}, rel=1e-4
    )
    assert found["protocol"]["hash"] != drawn["protocol"]["hash"]
    assert found["protocol"]["ruler"] == drawn["protocol"]["ruler"]
    assert found["rows"][0]["nfe"] is None
    assert found["bundle"]["kind"] == "pictures"


def test_two_folders_need_no_captions_and_equal_ones_are_no_distance_apart(evaluate, save_pictures, tmp_path):
    colours = {f"p{number}": (number * 20, 255 - number * 20, number) for number in range(6)}
    folders = [save_pictures(tmp_path / name, colours) for name in ("ours", "theirs")]
    evaluate(
        "protocol=pictures",
        "protocol.sets=[{name:pictures,split:null,captions:null,metrics:[frechet],few:[frechet]}]",
        "protocol.extractors.efficientnet_lite0.size=32",
        f"pictures={folders[0]}",
        f"reference={folders[1]}",
        f"out={tmp_path / 'out'}",
    )
    found = read_results(tmp_path / "out" / "results.json")
    assert values(found)["pictures/fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-6)
    assert found["rows"][0]["few"]


def test_statistics_stand_for_the_pictures_that_they_were_taken_of(evaluate, save_pictures, tmp_path):
    colours = [{f"p{n}": (n * 20, 255 - n * step, n) for n in range(6)} for step in (20, 30)]
    ours, theirs = (save_pictures(tmp_path / str(number), each) for number, each in enumerate(colours))
    common = [
        "protocol=pictures",
        "protocol.sets=[{name:pictures,split:null,captions:null,metrics:[frechet,nearest],few:[frechet]}]",
        "protocol.extractors.efficientnet_lite0.size=32",
        "data.size=16",
    ]
    path = tmp_path / "real.npz"
    said = evaluate(*common, f"reference={theirs}", f"write_statistics={path}").out
    assert "efficientnet_lite0 of 6 pictures" in said
    for name, reference in (("pictures", f"reference={theirs}"), ("numbers", f"statistics={path}")):
        evaluate(*common, f"pictures={ours}", reference, f"out={tmp_path / name}")
    whole, alone = (read_results(tmp_path / name / "results.json") for name in ("pictures", "numbers"))
    name = "pictures/fd_efficientnet_lite0"
    assert list(values(alone)) == [name]
    assert values(alone)[name] == pytest.approx(values(whole)[name], rel=1e-9)
    assert alone["protocol"]["reference"] == whole["protocol"]["reference"]
    other = [*common[:2], "protocol.extractors.efficientnet_lite0.size=64", f"pictures={ours}"]
    ended = evaluate(*other, f"statistics={path}", f"out={tmp_path / 'new'}", status=1)
    assert "network size '32', the protocol has '64'" in ended.sentence


def test_a_sweep_measures_each_point_and_draws_curves(evaluate, tmp_path):
    one_set = "protocol.sets=[{name:train,split:train,captions:4,metrics:[frechet,clip_score],few:[frechet]}]"
    out = tmp_path / "sweep"
    evaluate(one_set, "sweep.num_steps=[1,2]", "sweep.scales=[1,2]", "sweep.samplers=[ddim]", f"out={out}")
    with (out / "sweep.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 8
    assert [line["nfe"] for line in lines[::2]] == ["1", "2", "2", "4"]  # at scale 1 there is no second half
    assert len({line["protocol"] for line in lines}) == 4
    assert len({line["ruler"] for line in lines}) == 1
    name = "train_fd_efficientnet_lite0"
    for file in (f"{name}_own_clip_score.png", f"{name}_nfe.svg", "report.md", "point_003.json"):
        assert (out / file).is_file(), file
    assert "| fd_efficientnet_lite0 (few pictures) |" in (out / "report.md").read_text()


@pytest.fixture(scope="module")
def options():
    """The config of the command, as it is checked before anything heavy loads."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("evaluate", overrides=["protocol=quick"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "many"}, "steps=many must be a whole number"),
        ({"scale": "big"}, "scale=big must be a number, or null"),
        ({"ema_length": "long"}, "ema_length=long must be a number"),
        ({"ema_length": 0.1, "pictures": "a"}, "ema_length applies only to a bundle"),
        ({"show": 0}, "show=0 must be at least 1"),
        ({"pictures": "a", "real": "val"}, "both say what is measured: give one"),
        ({"reference": "a", "statistics": "b"}, "both name the reference set: give one"),
        ({"real": "val", "sweep": {"scales": [1]}}, "a sweep generates pictures"),
        ({"sweep": {"samplers": ["hein"]}}, "no sampler 'hein', did you mean 'heun'?"),
        ({"sweep": {"scales": 2}}, "must be a list"),
        ({"write_statistics": "real.csv"}, "must end with .npz"),
        ({"write_statistics": "a.npz", "statistics": "b.npz"}, "takes real pictures, not statistics"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_loads(options, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_options(OmegaConf.merge(options, changes))


@pytest.mark.parametrize("name", ["out", "list_prompts", "write_statistics"])
def test_what_is_there_already_is_not_written_again(options, name, tmp_path):
    (tmp_path / "a.npz").write_text("")
    with pytest.raises(UserError, match=rf"{name}=.* exists already"):
        check_options(OmegaConf.merge(options, {name: str(tmp_path / "a.npz")}))


def test_what_cannot_be_measured_is_refused_and_nothing_is_written(evaluate, tmp_path):
    new = f"out={tmp_path / 'new'}"
    too_few = "protocol.sets=[{name:x,split:train,captions:4,metrics:[frechet]}]"
    of_pictures = "protocol.sets=[{name:x,split:null,captions:4,metrics:[nearest]}]"
    for argument, sentence in {
        f"bundle={tmp_path}": "no bundle",
        f"data.root={tmp_path}": "shards.json is missing",
        "device=tpu": "device=tpu",
        "ema_length=0.1": "ema_length=0.1 needs the run",
        "precision=float8": "precision='float8'",
        f"pictures={tmp_path / 'none'}": "there is no folder",
        too_few: "take more, or name it",
        of_pictures: "pictures=<folder>",
    }.items():
        assert sentence in evaluate(argument, new, status=1).sentence
    assert list(tmp_path.iterdir()) == []


def test_trainings_of_one_recipe_are_one_subject_with_both_spreads(
    evaluate, bundle, build_network, specs, tmp_path
):
    source = Bundle.open(bundle)
    state = build_network(specs["backbone"], 9).state_dict()
    parts = {name: source.part(name) for name in source.names}
    other = write_bundle(
        tmp_path / "other",
        parts=parts | {"backbone": Part(spec=specs["backbone"], state=state)},
        tokenizer=source.tokenizer(),
        settings={name: value for name, value in source.config.items() if name not in OF_FILES},
    )
    sets = "protocol.sets=[{name:train,split:train,captions:4,metrics:[nearest,clip_score]}]"
    common = ["steps=1", "protocol.seeds=2", sets]
    for name, value in {"first": bundle, "second": other, "both": f"[{bundle},{other}]"}.items():
        ended = evaluate(f"bundle={value}", f"out={tmp_path / 'out' / name}", *common)
    one, two, both = (
        read_results(tmp_path / "out" / name / "results.json") for name in ("first", "second", "both")
    )
    assert [each["sha256"] for each in both["trainings"]] == [source.sha256, Bundle.open(other).sha256]
    for own, others, row in zip(one["rows"], two["rows"], both["rows"], strict=True):
        if row["set"] == "autoencoder":
            continue
        assert row["per_seed"] == own["per_seed"] + others["per_seed"]
        assert row["per_caption"] == own["per_caption"] + others["per_caption"]
        assert row["value"] == pytest.approx((own["value"] + others["value"]) / 2)
        assert row["sd_trainings"] == pytest.approx(abs(own["value"] - others["value"]) / 2**0.5)
        assert row["sd"] == pytest.approx(((own["sd"] ** 2 + others["sd"] ** 2) / 2) ** 0.5)
        assert (row["trainings"], row["seeds"]) == (2, 2)
    assert "between trainings" in (tmp_path / "out" / "both" / "report.md").read_text()
    assert "2 trainings" in ended.out


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("bundle=[]", r"bundle=\[\] must name trainings of a recipe"),
        ("bundle=[1,2]", r"bundle=\[1, 2\] must name trainings"),
        ("bundle=[/nowhere,shipped]", "there is no bundle at /nowhere"),
        ("bundle=[shipped,shipped]", "lists 2 trainings, of which only 1 differ"),
        ("bundle=[shipped,shipped] sweep.scales=[1]", "a list of bundles is one subject"),
        ("bundle=[shipped,shipped] real=val", "a list of bundles is one subject"),
    ],
)
def test_lists_that_are_no_trainings_are_refused(evaluate, tmp_path, typed, sentence):
    assert re.search(sentence, evaluate(*typed.split(), f"out={tmp_path / 'out'}", status=1).sentence)
    assert not (tmp_path / "out").exists()
