"""Facts about the model of scaling, and the page that records it."""

from dataclasses import replace

import pytest

from benchmarks.scaling_model import (
    HBM,
    MFU,
    NETWORKS,
    PEAK,
    TRAFFIC,
    Training,
    efficiencies,
    exchange,
    step,
    stops_at,
    trainings,
)
from benchmarks.scaling_page import PAGE, page

MADE_UP = Training(name="made up", parameters=1e9, operations=1e12, samples=8)
SLOW = min(NETWORKS.values())


@pytest.fixture(scope="module")
def everything() -> list[Training]:
    return list(trainings())


def test_a_rank_alone_computes_updates_and_waits_for_nobody():
    seconds = step(MADE_UP, 1, mfu=0.5, network=SLOW)
    assert seconds == pytest.approx(8 * 1e12 / (0.5 * PEAK) + 1e9 * TRAFFIC / HBM)


def test_shards_send_half_as_much_again_and_for_every_micro_batch():
    def sent(**changes) -> float:
        return exchange(replace(MADE_UP, **changes), 64, network=SLOW)

    assert sent(strategy="fsdp") / sent() == pytest.approx(1.5)
    assert sent(strategy="fsdp", accumulated=4) / sent(strategy="fsdp") == pytest.approx(4)
    assert sent(accumulated=4) == sent()
    assert sent(gradient_bytes=2) / sent() == pytest.approx(0.5, rel=0.01)  # hops take their time anyway


def test_each_further_rank_waits_longer_for_whole_weights(everything):
    for training in everything:
        if training.strategy == "ddp":
            for network in NETWORKS.values():
                found = list(efficiencies(training, mfu=MFU, network=network).values())
                assert found == sorted(found, reverse=True)
                assert found[0] < 1


def test_scaling_stops_at_the_first_number_below_the_floor():
    assert stops_at({8: 0.95, 16: 0.9, 32: 0.8, 64: 0.7}, floor=0.9) == "32"
    assert stops_at({8: 0.95, 16: 0.9}, floor=0.9) == "-"


def test_the_networks_are_those_of_the_yaml(everything):
    assert everything[0].name.startswith("flickr_base, 16 x 16 samples a rank")
    assert everything[0].parameters == pytest.approx(69.3e6, rel=1e-3)
    assert max(training.parameters for training in everything) > 1e9


def test_the_recorded_page_is_what_the_model_says_now(everything):
    assert PAGE.read_text(encoding="utf-8") == page(everything)
