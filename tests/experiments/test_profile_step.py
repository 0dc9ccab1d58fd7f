"""Facts about benchmarks/profile_step.py: nothing of a step is lost, and the work is that of closed forms."""

import pytest
import torch

from benchmarks.flops import gflop
from benchmarks.profile_step import (
    AFTER,
    GROUPS,
    NETWORKS,
    group_of,
    groups,
    least,
    network,
    profiled,
    report,
    training_step,
)

SMALL = {"channels": 16, "multipliers": [1], "blocks_per_level": 1, "norm_groups": 4, "mid_attention": False}


@pytest.fixture(scope="module")
def step():
    """A step of a small autoencoder: 2 pictures of 8 px, 7 convolutions of 3x3 and more."""
    net, inputs = network("kl_f8_tiny", batch=2, side=8, **SMALL, latent_channels=4)
    return training_step(net, inputs, torch.bfloat16)


def test_the_groups_of_a_step_have_all_its_operators_and_their_work(step):
    operators = profiled(step, rounds=2)
    found = {own.name: own for own in groups(operators)}
    assert {"convolutions", "norms", "elementwise", *AFTER} <= found.keys() <= {*GROUPS, *AFTER, "rest"}
    for name in ("seconds", "calls", "gflop"):
        total = sum(getattr(own, name) for own in operators)
        assert sum(getattr(own, name) for own in found.values()) == pytest.approx(total)
    assert sum(own.gflop for own in operators) == pytest.approx(gflop(step))
    # all work of this network is that of its convolutions, which count twice as much backward as forward but
    # for the first one, whose input needs no gradient
    convolved = {own.name: own.gflop for own in operators if own.group == "convolutions"}
    assert found["convolutions"].gflop == sum(convolved.values())
    first = 2 * (2 * 8 * 8) * 16 * 3 * 9 / 1e9  # places times outputs times inputs times taps
    assert convolved["convolution_backward"] == pytest.approx(2 * convolved["mkldnn_convolution"] - first)


def test_the_least_of_the_rounds_is_taken_call_by_call_of_those_with_all_calls():
    assert least([[3.0, 1.0], [2.0, 4.0]]) == [2.0, 1.0]
    assert least([[3.0, 1.0], [0.5], [], [2.0, 4.0]]) == [2.0, 1.0]
    assert least([[], [0.5]]) == [0.5]


def test_the_tables_have_a_row_for_each_group_and_the_dearest_operators(step):
    lines = report("small", step, peak=100.0, rounds=1, most=3).splitlines()
    assert lines[0] == "## small"
    assert "% of a convolution's 100." in lines[2]
    operators = lines[max(n for n, line in enumerate(lines) if line.startswith("| operator")) :]
    assert len(operators) == 2 + 3


@pytest.mark.parametrize("name", ["unet_tiny", "dit_tiny", "kl_f8_tiny"])
def test_a_network_fits_its_inputs(name):
    net, inputs = network(name, batch=1, side=NETWORKS[name][2])
    output = net(*inputs)
    assert (output[0] if isinstance(output, tuple) else output).shape == inputs[0].shape


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("addmm", "matrix products"),
        ("convolution_backward", "convolutions"),
        ("native_layer_norm_backward", "norms"),
        ("_softmax_backward_data", "softmax"),
        ("add_", "elementwise"),
        ("gelu_backward", "elementwise"),
        ("_to_copy", "copies and layouts"),
        ("upsample_nearest2d", "copies and layouts"),
        ("detach", "rest"),
    ],
)
def test_an_operator_has_the_group_of_what_it_does(name, group):
    assert group_of(name) == group
