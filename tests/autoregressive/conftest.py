"""Parts of the tiny systems, and batches for them."""

import pytest

from ldm.data.codes import CodeData
from ldm.generators.autoregressive import CodeGenerator, load_clip
from tests.autoregressive.tiny import BACKBONES, make_stage, write_clip
from tests.fixtures import network


@pytest.fixture(scope="session")
def clip_path(tokenizer, tmp_path_factory):
    """A bundle of a tiny CLIP. Read it, never write to it."""
    return write_clip(tmp_path_factory.mktemp("bundles") / "clip", tokenizer)


@pytest.fixture
def clip(clip_path):
    return load_clip(bundle=str(clip_path))


@pytest.fixture(params=BACKBONES)
def system(request):
    """The name of each system in turn."""
    return request.param


@pytest.fixture
def make_generator(codes, clip):
    """`make_generator(system, **options)`: a network that differs between conditions, with its parts."""

    def make(system, **options):
        net = network(BACKBONES[system], 3)
        for parameter in net.parameters():
            parameter.data *= 3
        return CodeGenerator(net=net.eval(), codes=codes, clip=clip, **options)

    return make


@pytest.fixture
def stage(codes, clip, adamw):
    """`stage(system, **options)`."""

    def make(system, **options):
        made = make_stage(system, codes, clip, adamw, **options)
        made.on_fit_start()
        return made

    return make


@pytest.fixture
def code_data(pictures, codes, clip):
    """`code_data(system)`: the data of a system's training."""

    def make(system):
        return CodeData(pictures=pictures, codes=codes, embedder=clip if system == "clipgen" else None)

    return make
