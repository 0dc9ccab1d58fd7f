import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ldm.config import CONF
from ldm.evaluation.protocol import (
    GENERATED,
    CaptionSet,
    Protocol,
    caption_sets,
    describe,
    digest,
    read_captions,
)
from ldm.io.reading import hash_file
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.weights import KNOWN

KEYS = [f"p{number}" for number in range(30)]
TEXTS = [[f"caption {number}", f"other {number}"] for number in range(30)]


def draw(captions, *, seed=0, keys=KEYS, texts=TEXTS):
    return CaptionSet(name="train", split="train", captions=captions, metrics=()).choose(
        keys, texts, seed=seed, offset=100
    )


def other(value):
    """Another value of the same type."""
    match value:
        case str():
            return f"{value} "
        case bool():
            return not value
        case int():
            return value + 1
        case tuple():
            return value[:-1] or ("other",)
        case dict():
            return value | {"sampler": "another"}
        case None:
            return "other"
    raise TypeError(value)


def other_of(one, name):
    """Another value of a field, a valid one."""
    return "caption" if name == "unit" else other(getattr(one, name))


def test_every_field_is_in_the_hash(protocol):
    fields = [field.name for field in dataclasses.fields(protocol)]
    changed = [dataclasses.replace(protocol, **{name: other(getattr(protocol, name))}) for name in fields]
    hashes = {protocol.hash, *(each.hash for each in changed)}
    assert len(hashes) == len(fields) + 1


def test_every_setting_of_a_generator_is_in_the_hash_and_none_in_the_ruler(protocol):
    settings = protocol.generation
    changed = [settings | {name: other(value)} for name, value in settings.items()] + [settings | {"new": 1}]
    others = [dataclasses.replace(protocol, generation=each) for each in changed]
    assert len({protocol.hash, *(each.hash for each in others)}) == len(others) + 1
    assert {each.ruler for each in others} == {protocol.ruler}
    with pytest.raises(ValueError, match="a generator's setting can't be called 'size'"):
        dataclasses.replace(protocol, generation=settings | {"size": 3})


def test_the_hash_is_that_of_protocols_whose_settings_were_fields_of_their_own():
    """The numbers of committed results stay comparable."""
    protocol = Protocol(
        name="tiny",
        sets=(CaptionSet(name="a", split="train", captions=3, metrics=("nearest",)),),
        caption_seed=0,
        size=16,
        resize="bicubic",
        data="d" * 64,
        reference="e" * 64,
        splits=("train",),
        held_out=None,
        features=(FeatureIdentity(name="x", sha256="f" * 64, size=16, resize="bicubic"),),
        generation={
            "sampler": "heun(steps=4)",
            "guidance": "cfg(scale=3)",
            "nfe": 14,
            "precision": "float32",
            "generator": "philox4x32-10",
        },
        batch_size=3,
    )
    assert protocol.hash == "a191abc69da7d65daa709bb03fba94747e2c8f8e07cdd6c6758d795785410af2"
    assert protocol.ruler == "f027eb7da6a62014dcffbbacc2c91b4b73c32f610ded6edfc4de2a8ad4170eaf"


def test_every_field_of_sets_and_features_is_in_the_hash(protocol):
    first = protocol.sets[0]
    sets = [
        dataclasses.replace(first, **{field.name: other_of(first, field.name)})
        for field in dataclasses.fields(first)
    ]
    (network,) = protocol.features
    features = [
        dataclasses.replace(network, **{field.name: other_of(network, field.name)})
        for field in dataclasses.fields(network)
    ]
    changed = [dataclasses.replace(protocol, sets=(one, *protocol.sets[1:])) for one in sets]
    changed += [dataclasses.replace(protocol, features=(one,)) for one in features]
    assert len({protocol.hash, *(each.hash for each in changed)}) == len(changed) + 1


def test_equal_protocols_have_equal_hashes(protocol):
    assert (
        dataclasses.replace(protocol, sets=tuple(dataclasses.replace(one) for one in protocol.sets)).hash
        == protocol.hash
    )


def test_draw_is_a_function_of_the_seed_and_not_of_the_order_of_pictures():
    captions = draw(10)
    assert captions == draw(10)
    assert {one.key for one in captions} != {one.key for one in draw(10, seed=1)}
    backwards = draw(10, keys=KEYS[::-1], texts=TEXTS[::-1])
    assert {(one.key, one.text) for one in backwards} == {(one.key, one.text) for one in captions}


def test_draw_names_each_picture_once_by_its_row_with_one_of_its_captions():
    captions = draw(None)
    assert sorted(one.row for one in captions) == list(range(100, 130))
    assert all(one.text in TEXTS[one.row - 100] for one in captions)
    assert len({one.text.split()[0] for one in captions}) == 2


def test_a_larger_draw_begins_with_the_smaller_one():
    assert draw(20)[:5] == draw(5)


def test_impossible_sets_are_refused():
    with pytest.raises(ValueError, match="wants 31 captions, split 'train' has 30 pictures"):
        draw(31)
    with pytest.raises(ValueError, match="samples=0 must be at least 1"):
        CaptionSet(name="x", split="train", captions=3, samples=0, metrics=())


def test_sets_with_one_name_are_refused(protocol):
    with pytest.raises(ValueError, match="names of their own"):
        dataclasses.replace(protocol, sets=(protocol.sets[0], protocol.sets[0]))


def test_a_config_node_is_described_by_what_it_does_not_by_how_it_is_written():
    node = {"_target_": "ldm.diffusion.guidance.interval", "_partial_": True, "low": 0.2, "high": 0.8}
    node["within"] = {"_target_": "ldm.diffusion.guidance.cfg", "scale": 3.0}
    assert describe(node) == "interval(high=0.8, low=0.2, within=cfg(scale=3))"
    assert describe(dict(reversed(node.items()))) == describe(node)
    assert describe(node | {"low": 0}) == describe(node | {"low": 0.0})


def test_a_distance_is_told_by_the_hash_of_its_weights_and_not_by_their_place():
    node = {"_target_": "ldm.metrics.networks.Lpips", "weights": None, "sha256": None}
    assert describe(node) == "Lpips"
    placed = node | {"weights": "/mine/alexnet.pth", "sha256": "7be5"}
    assert describe(placed) == "Lpips(sha256=7be5)"
    inside = {"_target_": "ldm.metrics.diversity.PerceptualDiversity", "distance": placed, "pixels": "pixels"}
    assert describe(inside) == "PerceptualDiversity(distance=Lpips(sha256=7be5), pixels=pixels)"


def test_a_list_of_captions_is_told_by_its_content_and_not_by_its_place(tmp_path):
    found = []
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        path = tmp_path / f"{name}.csv"
        path.write_text(f"key,caption\np0,{text}\n")
        listed = CaptionSet(name="x", split=None, captions=None, metrics=(), file=str(path))
        found.append(listed.identified(read_captions(path, rows=None)))
    assert found[0] == found[1] != found[2]
    assert found[0].file == hash_file(tmp_path / "a.csv")


def test_a_protocol_is_read_from_its_yaml_and_unknown_keys_are_refused(protocol):
    spec = dataclasses.asdict(protocol)
    names = ("size", "resize", "data", "reference", "generation")
    identities = {name: spec.pop(name) for name in names} | {"features": protocol.features}
    del spec["features"]
    assert Protocol.of(spec, **identities).hash == protocol.hash
    with pytest.raises(ValueError, match=r"unknown or missing.*pictures"):
        Protocol.of({**spec, "pictures": 3}, **identities)
    with pytest.raises(ValueError, match=r"unknown or missing.*'sets'"):
        Protocol.of({"name": "x"}, **identities)


def test_the_ruler_knows_how_pictures_are_measured_and_not_how_they_are_drawn(protocol):
    for field in dataclasses.fields(protocol):
        changed = dataclasses.replace(protocol, **{field.name: other(getattr(protocol, field.name))})
        assert (changed.ruler == protocol.ruler) == (field.name in GENERATED), field.name


def test_a_draw_of_captions_takes_each_once_and_a_picture_more_than_once():
    by_caption = CaptionSet(name="all", split="train", captions=None, unit="caption", metrics=())
    drawn = by_caption.choose(KEYS, TEXTS, seed=0, offset=0)
    assert sorted(one.text for one in drawn) == sorted(text for own in TEXTS for text in own)
    with pytest.raises(ValueError, match="wants 61 captions, split 'train' has 60 captions"):
        dataclasses.replace(by_caption, captions=61).choose(KEYS, TEXTS, seed=0, offset=0)


def test_another_list_of_captions_than_the_protocols_is_refused():
    drawn = draw(10)
    stated = CaptionSet(name="train", split="train", captions=10, metrics=(), sha256=digest(drawn))
    stated.check(drawn)
    with pytest.raises(ValueError, match="its 10 captions have sha256"):
        stated.check(draw(10, seed=1))


def test_a_list_of_captions_is_read_as_it_is(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('key,caption\np3,"a dog, running"\np1,a cat\n')
    captions = read_captions(path, rows={"p1": 7, "p3": 9})
    assert [tuple(one) for one in captions] == [("a dog, running", "p3", 9), ("a cat", "p1", 7)]
    with pytest.raises(ValueError, match="2 of its 2 keys, 'p3' first, name no picture"):
        read_captions(path, rows={})
    path.write_text("name,text\n")
    with pytest.raises(ValueError, match="columns key and caption"):
        read_captions(path, rows={})


def every_metric():
    files = (OmegaConf.load(path) for path in (CONF / "metric").glob("*.yaml"))
    return {name: node for file in files for name, node in file.items()}


def test_the_pages_of_numbers_name_every_protocol_and_every_metric():
    docs = Path(__file__).parents[2] / "docs"
    page = "".join((docs / name).read_text(encoding="utf-8") for name in ("numbers.md", "evaluate.md"))
    names = [path.stem for group in ("protocol", "metric") for path in (CONF / group).glob("*.yaml")]
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", sorted((CONF / "protocol").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_protocol_has_the_metrics_and_the_networks_that_it_names(path):
    node = OmegaConf.load(path)
    spec = OmegaConf.to_container(OmegaConf.merge({"seed": 0}, node), resolve=True)
    metrics = every_metric()
    assert spec["name"] == path.stem
    for each in caption_sets(spec):
        assert {*each.metrics} <= metrics.keys()
        for metric in (metrics[name] for name in each.metrics):
            read = next(metric[key] for key in ("features", "clip", "pixels") if key in metric)
            assert read.startswith((*spec["extractors"], "own_clip")), metric
        assert each.split is None or each.split in spec["splits"]
    networks = {**spec["extractors"], **spec.get("distances", {})}
    assert {name for name, network in networks.items() if "weights" in network} <= {*KNOWN}
