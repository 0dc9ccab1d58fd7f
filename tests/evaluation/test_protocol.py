import dataclasses

import pytest

from ldm.evaluation.protocol import CaptionSet, Protocol, describe
from ldm.metrics.features import FeatureIdentity

KEYS = [f"p{number}" for number in range(30)]
TEXTS = [[f"caption {number}", f"other {number}"] for number in range(30)]


def draw(captions, *, seed=0, keys=KEYS, texts=TEXTS):
    return CaptionSet(name="train", split="train", captions=captions, metrics=()).draw(
        keys, texts, seed=seed, offset=100
    )


def other(value):
    """Another value of the same type."""
    match value:
        case str():
            return f"{value} "
        case int():
            return value + 1
        case FeatureIdentity():
            return dataclasses.replace(value, size=value.size + 32)
        case tuple():
            return value[:-1]
    raise TypeError(value)


def test_every_field_is_in_the_hash(protocol):
    fields = [field.name for field in dataclasses.fields(protocol)]
    changed = [dataclasses.replace(protocol, **{name: other(getattr(protocol, name))}) for name in fields]
    hashes = {protocol.hash, *(each.hash for each in changed)}
    assert len(hashes) == len(fields) + 1


def test_every_field_of_sets_and_features_is_in_the_hash(protocol):
    first = protocol.sets[0]
    sets = [
        dataclasses.replace(first, **{field.name: other(getattr(first, field.name))})
        for field in dataclasses.fields(first)
    ]
    features = [
        dataclasses.replace(protocol.features, **{field.name: other(getattr(protocol.features, field.name))})
        for field in dataclasses.fields(protocol.features)
    ]
    changed = [dataclasses.replace(protocol, sets=(one, *protocol.sets[1:])) for one in sets]
    changed += [dataclasses.replace(protocol, features=one) for one in features]
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


def test_a_protocol_is_read_from_its_yaml_and_unknown_keys_are_refused(protocol):
    spec = dataclasses.asdict(protocol)
    identities = {name: spec.pop(name) for name in ("size", "data", "sampler", "guidance", "precision")}
    identities["features"] = protocol.features
    del spec["features"]
    assert Protocol.of(spec, **identities).hash == protocol.hash
    with pytest.raises(ValueError, match=r"unknown or missing.*pictures"):
        Protocol.of({**spec, "pictures": 3}, **identities)
    with pytest.raises(ValueError, match=r"unknown or missing.*'sets'"):
        Protocol.of({"name": "x"}, **identities)
