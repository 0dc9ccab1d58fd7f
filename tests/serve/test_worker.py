"""Facts about the process that has the networks, run in a thread of this one."""

from dataclasses import dataclass, replace
from multiprocessing import Pipe

import pytest
import torch

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.generators.generator import Opened, check_options
from ldm.serve.describing import described
from ldm.serve.requests import options_of
from ldm.serve.schemas import Generate
from ldm.serve.service import Refused
from ldm.serve.worker import Answer, Chunk, Failed, Made, Question, Step, Stop, Task, Worker


@dataclass(frozen=True)
class Plain:
    """A generator of one colour, with the protocol's members alone: no steps, no previews, no options."""

    size: int = 8
    tokenizer: None = None
    num_parameters: None = None
    nfe: None = None
    starts_from_pictures: bool = False
    reconstruct: None = None

    def __call__(self, prompts, seeds, *, source=None):
        if "refuse" in prompts:
            raise UserError("this prompt is refused")
        if "fault" in prompts:
            raise ZeroDivisionError
        return torch.tensor(seeds).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)

    def to(self, device):
        return self

    def settings(self):
        return {}

    def with_options(self, **changes):
        check_options(changes, [])
        return self


@pytest.fixture
def ends():
    """Both ends of a connection."""
    ours, theirs = Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def tiny(ends, bundle_path):
    return Worker(ends[1], {"tiny": str(bundle_path)}, None)


@pytest.fixture
def plain(ends, bundle_path):
    """A worker with the generator above."""
    worker = Worker(ends[1], {"plain": str(bundle_path)}, None)
    worker.opened = lambda model: Opened(generator=Plain(), bundle=Bundle.open(bundle_path))
    return worker


def chunk(*prompts: str, **options) -> Chunk:
    tasks = tuple(Task(prompt, seed, None, None, "{}") for seed, prompt in enumerate(prompts))
    return Chunk(7, "tiny", tasks, options, None)


def test_a_stop_takes_effect_within_a_step(tiny, ends):
    ends[0].send(Stop(7))  # it lies there before the first step is done
    assert tiny.answer(chunk("fox", steps=30)) == Failed(7, "stopped")
    step = ends[0].recv()
    assert isinstance(step, Step)
    assert (step.step, step.steps, len(step.previews)) == (1, 30, 1)
    assert not ends[0].poll()


def test_a_stop_of_another_chunk_is_passed_over(tiny, ends):
    ends[0].send(Stop(6))
    assert isinstance(tiny.answer(chunk("fox", steps=2)), Made)
    assert [ends[0].recv().step for _ in range(2)] == [1, 2]


def test_a_generator_that_knows_the_protocol_alone_is_served(plain, ends):
    shown = described("plain", plain.opened("plain"))
    assert (shown["options"], shown["preview"], shown["starts_from_pictures"]) == ([], False, False)
    assert shown["presets"] == {"fast": {}, "balanced": {}, "best": {}}
    made = plain.answer(chunk("a", "b"))
    assert isinstance(made, Made)
    assert len(made.pictures) == 2
    assert not ends[0].poll()


@dataclass(frozen=True)
class Warm(Plain):
    """The same with an option of its own."""

    warmth: float = 0.5

    def settings(self):
        return {"warmth": self.warmth, "kind": "warm"}

    def with_options(self, **changes):
        check_options(changes, ["warmth"])
        return replace(self, **changes)


def test_options_that_only_one_system_has_are_offered(plain):
    shown = described("warm", Opened(generator=Warm(), bundle=plain.opened("plain").bundle))
    assert shown["default"] == {"warmth": 0.5}
    asked = Generate(prompts=["x"], options={"warmth": 2})
    assert options_of(shown, asked) == {"warmth": 2.0}
    whole = shown | {"default": {"warmth": 3}}
    assert type(options_of(whole, asked)["warmth"]) is int
    with pytest.raises(Refused, match="must be a whole number"):
        options_of(whole, Generate(prompts=["x"], options={"warmth": 2.5}))
    with pytest.raises(Refused, match="warm has no option 'heat'; it has warmth"):
        options_of(shown, Generate(prompts=["x"], options={"heat": 2}))


def test_errors_are_answered_and_the_next_chunk_is_made(plain, capsys):
    assert plain.answer(chunk("refuse")) == Failed(7, "this prompt is refused")
    assert plain.answer(chunk("fault")) == Failed(7, "a fault of the program: its log has the traceback")
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert isinstance(plain.answer(chunk("a")), Made)


def test_a_question_is_answered_by_the_generator_that_it_names(plain):
    assert plain.answer(Question(3, "plain", size_of, 2)) == Answer(3, 16)


def size_of(opened, factor):
    return factor * opened.generator.size


def test_what_is_sent_to_the_server_is_plain_data(tiny):
    made = tiny.answer(chunk("fox", steps=1))
    assert {type(value) for value in leaves(made.settings)} <= {str, int, float, bool, type(None)}


def leaves(tree):
    if isinstance(tree, dict | list | tuple):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(each)
    else:
        yield tree
