"""Facts about bundles: what comes back out of one, and what is refused."""

import os
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_parameter_registration_hook

from ldm.checkpoints.bundle import Bundle, BundleError, Part, is_finite
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.construct import construct
from ldm.generators.diffusion_bundle import codec_of, load_codec, open_latent_diffusion
from ldm.io.reading import hash_file


@pytest.fixture
def copied(bundle_path, tmp_path):
    """A bundle to be damaged."""
    return shutil.copytree(bundle_path, tmp_path / "bundle")


def edit(bundle, change) -> None:
    """Changes a bundle's config, as a forger who knows the format would."""
    config = yaml.safe_load((bundle / "config.yaml").read_text())
    change(config)
    (bundle / "config.yaml").write_text(yaml.safe_dump(config))


def forge(bundle, name: str, state) -> None:
    """Replaces a part's weights and puts the new file's hash into the config."""
    file = bundle / f"{name}.safetensors"
    save_file(state, file)
    edit(bundle, lambda config: config["parts"][name].update(sha256=hash_file(file)))


def test_what_is_written_comes_back_to_the_bit(bundle_path, specs, build_network, tokenizer):
    bundle = Bundle.open(bundle_path)
    assert bundle.names == ["autoencoder", "backbone", "text_encoder"]
    for seed, name in enumerate(("autoencoder", "text_encoder", "backbone")):
        ours, theirs = build_network(specs[name], seed).state_dict(), bundle.network(name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert bundle.part(name).spec == specs[name]
    assert bundle.tokenizer().fingerprint() == tokenizer.fingerprint()
    codec = codec_of(bundle, bundle)
    assert codec.latent_shift.tolist() == [0.5, -0.25, 0.0, 1.0]
    assert codec.latent_scale.tolist() == [2.0, 1.5, 1.0, 0.5]


def test_an_opened_network_is_ready_to_use(bundle_path):
    net = Bundle.open(bundle_path).network("backbone")
    assert not net.training
    assert not any(p.is_meta for p in net.parameters())


def test_half_precision_halves_the_files_and_rounds_once(write_tiny_bundle, bundle_path, tmp_path):
    half = write_tiny_bundle(tmp_path / "half", dtype=torch.float16)
    for name in ("autoencoder", "backbone"):
        stored = load_file(half / f"{name}.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        whole = Bundle.open(bundle_path).part(name).state
        loaded = Bundle.open(half).part(name).state
        assert all(torch.equal(loaded[key], whole[key].half().float()) for key in whole)
    size = (half / "backbone.safetensors").stat().st_size
    assert size < 0.6 * (bundle_path / "backbone.safetensors").stat().st_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_seen_among_a_million(value, dtype):
    tensor = torch.randn(1000, 1000).to(dtype)
    assert is_finite(tensor)
    tensor[617, 3] = value
    assert not is_finite(tensor)
    assert is_finite(tensor[:0])


def test_the_same_contents_have_the_same_identity(write_tiny_bundle, bundle_path, tmp_path):
    again = write_tiny_bundle(tmp_path / "again")
    assert Bundle.open(again).sha256 == Bundle.open(bundle_path).sha256
    half = write_tiny_bundle(tmp_path / "half", dtype=torch.float16)
    assert Bundle.open(half).sha256 != Bundle.open(bundle_path).sha256


def test_a_bundle_is_found_by_its_run_and_by_its_experiment(bundle_path, tmp_path):
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        shutil.copytree(bundle_path, tmp_path / name / "bundle")
    newest = tmp_path / "20260102-000000-bbbb"
    (tmp_path / "20260103-000000-cccc").mkdir()  # a run that has not finished
    assert Bundle.open(newest).path == Bundle.open(tmp_path).path == newest / "bundle"


def test_a_codec_may_come_from_two_bundles(bundle_path, codec, tmp_path, specs, build_network, tokenizer):
    spec = specs["text_encoder"]
    parts = {"text_encoder": Part(spec=spec, state=build_network(spec, 9).state_dict())}
    texts = write_bundle(tmp_path / "texts", parts=parts, tokenizer=tokenizer, settings={})
    mixed = load_codec(autoencoder=str(bundle_path), text_encoder=str(texts))
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(mixed.encode_images(images).mean, codec.encode_images(images).mean)
    assert not torch.equal(mixed.encode_prompts(["a"]), codec.encode_prompts(["a"]))
    with pytest.raises(BundleError, match="no latent statistics"):
        load_codec(autoencoder=str(texts), text_encoder=str(texts))
    with pytest.raises(BundleError, match="it has no denoiser, only text_encoder"):
        open_latent_diffusion(Bundle.open(texts))


def test_an_existing_folder_is_not_written_over(bundle_path, write_tiny_bundle):
    before = hash_file(bundle_path / "config.yaml")
    with pytest.raises(FileExistsError, match="exists already"):
        write_tiny_bundle(bundle_path)
    assert hash_file(bundle_path / "config.yaml") == before


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(yaml.YAMLError):
        write_bundle(tmp_path / "bundle", parts={}, settings={"strange": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bundle_says_where_bundles_are(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle at .* a finished run leaves one under runs/"):
        Bundle.open(tmp_path)


def test_an_experiment_that_was_not_trained_yet_is_named_with_its_command(tmp_path):
    with pytest.raises(
        BundleError,
        match=r"no bundle at .*: python -m ldm.train with \+experiment=flickr_vae or name=flickr_vae",
    ):
        Bundle.open(tmp_path / "runs" / "flickr_vae")


@pytest.mark.parametrize("file", ["backbone.safetensors", "autoencoder.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(copied, file):
    (copied / file).unlink()
    with pytest.raises(BundleError, match=f"lacks its file {file}: copy the whole folder again"):
        open_latent_diffusion(Bundle.open(copied))


@pytest.mark.parametrize("file", ["backbone.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)])
def test_a_pipe_a_folder_or_a_link_to_itself_is_no_file(copied, file, make):
    (copied / file).unlink()
    make(copied / file)
    with pytest.raises(BundleError, match=f"lacks its file {file}: copy the whole folder again"):
        open_latent_diffusion(Bundle.open(copied))


@pytest.mark.parametrize("file", ["backbone.safetensors", "text_encoder.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_named(copied, file, damage):
    content = bytearray((copied / file).read_bytes())
    content[-9] ^= 4
    damaged = {"flip": content, "cut": content[:-9], "empty": b""}[damage]
    (copied / file).write_bytes(damaged)
    with pytest.raises(BundleError, match=rf"{file} is damaged \(sha256 differs\)"):
        open_latent_diffusion(Bundle.open(copied))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "parts: [",
        "parts:\n\tx: 1",
        "parts: {}",
        "format: 1\nparts:",
        "format: 1\nparts: 3",
        "[parts: 1]",
        "parts: &a [*a]",
        "format: 7\nparts: {}",
        "parts: \x00",
    ],
)
def test_a_config_that_is_none_is_refused(copied, text):
    (copied / "config.yaml").write_text(text)
    with pytest.raises(BundleError, match="bundle"):
        open_latent_diffusion(Bundle.open(copied))


def test_bytes_that_are_no_text_are_refused(copied):
    (copied / "config.yaml").write_bytes(b"parts:\xff\xfe")
    with pytest.raises(BundleError, match=r"config\.yaml is damaged"):
        Bundle.open(copied)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [touch {canary}]",
        "!!python/object/new:subprocess.Popen [[touch, {canary}]]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_yaml_that_would_run_code_runs_none(copied, tmp_path, tag):
    canary = tmp_path / "canary"
    with (copied / "config.yaml").open("a") as stream:
        stream.write(f"extra: {tag.format(canary=canary)}\n")
    with pytest.raises(BundleError, match=r"config\.yaml is damaged"):
        Bundle.open(copied)
    assert not canary.exists()


@pytest.mark.parametrize("place", ["backbone", "process", "sampler", "guidance"])
@pytest.mark.parametrize(
    "target", ["os.system", "torch.optim.AdamW", "ldm.models.unet.torch.load", "ldm.sample.main"]
)
def test_a_foreign_target_anywhere_is_refused(copied, tmp_path, place, target):
    canary = tmp_path / "canary"
    node = {"_target_": target, "command": f"touch {canary}"}

    def change(config) -> None:
        if place == "backbone":
            config["parts"]["backbone"]["spec"] = node
        else:
            config[place] = node

    edit(copied, change)
    with pytest.raises(ValueError, match=f"_target_ '{target}'"):
        open_latent_diffusion(Bundle.open(copied))
    assert not canary.exists()


def test_a_file_outside_the_bundle_is_never_opened(copied, tmp_path):
    outside = tmp_path / "outside.safetensors"
    save_file({"secret": torch.ones(1)}, outside)
    entry = {"file": "../outside.safetensors", "sha256": hash_file(outside)}
    edit(copied, lambda config: config["parts"]["backbone"].update(entry))
    with pytest.raises(
        BundleError, match=r"file='\.\./outside\.safetensors' is no file in the bundle's folder"
    ):
        Bundle.open(copied)


def test_a_pickle_under_the_name_of_safetensors_is_not_unpickled(copied, tmp_path):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return canary.touch, ()

    file = copied / "backbone.safetensors"
    torch.save(Payload(), file)
    edit(copied, lambda config: config["parts"]["backbone"].update(sha256=hash_file(file)))
    with pytest.raises(BundleError, match="is not a whole safetensors file"):
        Bundle.open(copied).part("backbone")
    assert not canary.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(copied, value):
    state = load_file(copied / "backbone.safetensors")
    state["conv_in.weight"].view(-1)[5] = value
    forge(copied, "backbone", state)
    with pytest.raises(BundleError, match=r"tensor 'conv_in\.weight' holds NaN or Inf"):
        Bundle.open(copied).network("backbone")


def test_weights_of_another_network_are_refused(copied):
    state = load_file(copied / "backbone.safetensors")
    for change in (
        {"conv_in.weight": torch.zeros(3, 3)},
        {"stranger": torch.zeros(1)},
    ):
        forge(copied, "backbone", state | change)
        with pytest.raises(BundleError, match="the weights of backbone don't fit its config"):
            Bundle.open(copied).network("backbone")
    del state["conv_in.weight"]
    forge(copied, "backbone", state)
    with pytest.raises(BundleError, match=r"Missing key.*conv_in\.weight"):
        Bundle.open(copied).network("backbone")


@pytest.mark.parametrize("entry", [None, 3, {}, {"file": "backbone.safetensors"}])
def test_a_part_that_is_not_described_is_refused(copied, entry):
    edit(copied, lambda config: config["parts"].update(backbone=entry))
    with pytest.raises(BundleError, match=r"config\.yaml is damaged \(config\.yaml: parts.*backbone"):
        open_latent_diffusion(Bundle.open(copied))


@pytest.mark.parametrize("key", ["sampler", "guidance", "process", "size", "tokenizer", "latents"])
def test_a_config_without_one_of_its_entries_is_refused(copied, key):
    edit(copied, lambda config: config.pop(key))
    with pytest.raises(BundleError, match="bundle"):
        open_latent_diffusion(Bundle.open(copied))


def test_statistics_that_do_not_fit_the_autoencoder_are_refused(copied):
    edit(copied, lambda config: config["latents"].update(shift=[0.0]))
    with pytest.raises(BundleError, match="latent"):
        open_latent_diffusion(Bundle.open(copied))


@pytest.mark.parametrize("name", ["pad_id", "context_length"])
def test_a_text_encoder_that_reads_texts_otherwise_than_its_tokenizer_is_refused(
    copied, specs, tokenizer, name
):
    sizes = {each: specs["text_encoder"][each] for each in ("width", "num_layers", "num_heads")}
    sizes |= {each: getattr(tokenizer, each) for each in ("vocab_size", "context_length", "pad_id")}

    def write(**changes: int) -> Bundle:
        spec = {"_target_": "ldm.models.bert.SentenceEncoder", **sizes, **changes}
        forge(copied, "text_encoder", construct(spec).state_dict())
        edit(copied, lambda config: config["parts"]["text_encoder"].update(spec=spec))
        return Bundle.open(copied)

    open_latent_diffusion(write())
    own = sizes[name]
    with pytest.raises(BundleError, match=f"{name}={own + 1}, but its tokenizer's is {own}: copy it again"):
        open_latent_diffusion(write(**{name: own + 1}))


def changed(place: str, value: object):
    """A change of one entry of a bundle's config, by its dotted place."""

    def change(config) -> None:
        *outer, last = place.split(".")
        for key in outer:
            config = config[key]
        config[last] = value

    return change


LINEAR = "ldm.diffusion.schedules.linear"
GUIDANCE, UNET = "ldm.diffusion.guidance.conditional", "ldm.models.unet.UNet"
PARTIAL = {"_partial_": True}
ABSURD = [
    ("size", 10**9, "size=1000000000 must be a whole number from 1 to 8192"),
    ("size", -8, "size=-8 must be a whole number"),
    ("size", "64", "size='64' must be a whole number"),
    ("size", True, "size=True must be a whole number"),
    ("latents.scale", [float("nan")] * 4, "no finite number"),
    ("latents.scale", [0, 1, 1, 1], "scale=0 must be a number from 1e-06 to 1e+06"),
    ("latents.scale", [1, "1", 1, 1], "scale='1' must be a number"),
    ("latents.scale", [1.0] * 3, "its latent statistics are not of 4 channels"),
    ("latents.shift", [float("inf")] * 4, "no finite number"),
    ("latents.shift", [1e30] * 4, "shift=1e+30 must be a number"),
    ("latents.shift", "0", "shift='0' must be a list of numbers"),
    ("guidance.scale", 1e30, "guidance: scale=1e+30 must lie between"),
    ("guidance.scale", float("nan"), "scale=nan is no finite number"),
    ("guidance.scale", "7", "can't be called with scale='7': it must be float"),
    ("sampler.steps", 10**9, "sampler: steps=1000000000 must lie between"),
    ("sampler.steps", 0, "steps=0 of a sampler must lie between 1 and 10000"),
    ("sampler.steps", "ten", "can't be called with steps='ten': it must be int"),
    (
        "sampler.method",
        "ddim",
        "'ddim'",
    ),
    ("process.schedule", {"_target_": LINEAR, "beta_end": 3.0}, "betas in"),
    ("process.schedule", {"_target_": LINEAR, "num_steps": 10**12}, "num_steps=10"),
    (
        "process.schedule",
        {"_target_": LINEAR, "num_steps": 0},
        "process can't be built",
    ),
    ("process.schedule", {"_target_": LINEAR, "num_steps": -3}, "can't be built"),
    ("process.prediction", 5, "its process can't be built"),
    ("process.schedule", PARTIAL | {"_target_": GUIDANCE}, "must be a _target_ of another kind"),
    ("process.times", PARTIAL | {"_target_": GUIDANCE}, "must be a _target_ of another kind"),
    ("sampler.method", PARTIAL | {"_target_": LINEAR}, "must be a _target_ of another kind (Sampler)"),
    ("sampler.grid", PARTIAL | {"_target_": LINEAR}, "must be a _target_ of another kind (Grid)"),
    ("sampler.method", PARTIAL | {"_target_": UNET}, "must be a _target_ of another kind (Sampler)"),
    ("sampler", PARTIAL | {"_target_": UNET}, f"sampler: '{UNET}' is no sampler"),
    ("guidance", PARTIAL | {"_target_": LINEAR}, f"guidance: '{LINEAR}' is no guidance"),
    ("guidance", {"_target_": "ldm.diffusion.predictions.Flow"}, "is no guidance"),
    ("guidance", {}, "guidance: None is no guidance"),
    ("process", [], "process holds a list, expected a mapping"),
    ("parts.backbone.spec.channels", 10**9, "channels=1000000000 must lie between"),
    ("parts.backbone.spec.channels", 2**16, "the weights of backbone don't fit its config"),
    ("parts.backbone.spec.channels", -4, "the weights of backbone don't fit its config"),
    ("parts.backbone.spec.channels", "wide", "can't be called with channels='wide'"),
    ("parts.backbone.spec.blocks_per_level", 2**17, "don't fit its config: the network has more than"),
    ("parts.backbone.spec.norm_groups", 0, "the weights of backbone don't fit its config"),
    ("parts.text_encoder.spec.num_layers", 2**17, "don't fit its config: the network has more than"),
    ("parts.backbone.file", "../backbone.safetensors", "is no file in the bundle"),
    ("parts.backbone.file", "/etc/passwd", "is no file in the bundle"),
    ("parts.backbone.file", ["a"], "file=['a'] must be a text"),
    ("parts.backbone.sha256", 3, "sha256=3 must be a text"),
    ("tokenizer", [1], "tokenizer holds a list, expected a mapping"),
    ("format", 10**40, "digits"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), ABSURD)
def test_an_absurd_config_is_refused_before_memory_is_taken(copied, place, value, sentence):
    edit(copied, changed(place, value))
    with pytest.raises(ValueError, match=r"bundle|_target_|sampler|guidance") as refusal:
        open_latent_diffusion(Bundle.open(copied))
    assert sentence in str(refusal.value)


def test_a_network_stops_being_built_where_its_file_ends(copied):
    edit(copied, changed("parts.text_encoder.spec.num_layers", 2**17))
    count = sum(tensor.numel() for tensor in load_file(copied / "text_encoder.safetensors").values())
    built = []
    hook = register_module_parameter_registration_hook(lambda *weight: built.append(weight[2].numel()))
    with pytest.raises(BundleError, match="the network has more than"):
        Bundle.open(copied).network("text_encoder")
    hook.remove()
    assert sum(built) < 4 * count


def test_pictures_that_are_no_numbers_are_an_error_and_never_black(copied):
    state = load_file(copied / "backbone.safetensors")
    forge(copied, "backbone", {key: tensor * 1e25 for key, tensor in state.items()})
    pipeline = open_latent_diffusion(Bundle.open(copied))
    with pytest.raises(FloatingPointError, match="the pictures are NaN or infinite"):
        pipeline(["a hat"], [0])
