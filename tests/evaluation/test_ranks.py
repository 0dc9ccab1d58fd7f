"""Several processes that measure together, with gloo."""

import dataclasses
import multiprocessing
import time

import pytest
import torch
from torch import distributed

from ldm.evaluation.feature_pass import Ranks


@pytest.fixture
def run_ranks(tmp_path):
    """`run_ranks(count, action)`: what `action(ranks)` gives or raises in each of so many processes."""

    def work(number, count, action, queue, timeout):
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/meet{count}", rank=number, world_size=count
        )
        try:
            queue.put((number, action(Ranks.joined(timeout=timeout))))
        except Exception as error:
            queue.put((number, f"{type(error).__name__}: {error}"))

    def run(count, action, *, timeout=30.0):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        processes = [
            context.Process(target=work, args=(number, count, action, queue, timeout), daemon=True)
            for number in range(count)
        ]
        for process in processes:
            process.start()
        found = dict(queue.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(timeout=10)
        return [found[number] for number in range(count)]

    return run


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_differ_by_one_at_most_and_come_back_in_order(run_ranks, count):
    """Of none to seven items; some processes then have none."""
    for total in range(8):
        shares = [Ranks(number=number, count=count).share(range(total)) for number in range(count)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def everything(ranks):
        return [list(ranks.in_turns(iter(ranks.share(range(total))))) for total in range(8)]

    assert run_ranks(count, everything) == [[list(range(total)) for total in range(8)]] * count


def test_what_one_makes_is_there_before_the_next_is_asked_for(run_ranks):
    """So that nobody holds more than a turn."""

    def made_and_given(ranks):
        log = []

        def make():
            for number in ranks.share(range(6)):
                log.append(f"made {number}")
                yield number

        log.extend(f"given {each}" for each in ranks.in_turns(make()))
        return log

    first, second = run_ranks(2, made_and_given)
    assert first[:3] == ["made 0", "given 0", "given 1"]
    assert second[:3] == ["made 1", "given 0", "given 1"]
    assert len(first) == len(second) == 9


@pytest.mark.parametrize("count", [2, 3])
def test_numbers_do_not_depend_on_the_number_of_processes(run_ranks, evaluator, paints_with_errors, count):
    """8 pictures of 3 processes are uneven shares; of the set of one picture all but the first have none."""

    def measured(ranks):
        together = dataclasses.replace(evaluator, ranks=ranks, captions=captions)
        return [
            {row.metric: (row.value, row.floor, row.ceiling) for row in together.measure(draw, each).rows}
            for each in sets
        ]

    train = evaluator.protocol.sets[0]
    sets = [train, dataclasses.replace(evaluator.protocol.sets[1], name="one")]
    captions = {**evaluator.captions, "one": evaluator.captions["heldout"][:1]}
    draw = paints_with_errors
    alone = measured(Ranks())
    for found in run_ranks(count, measured):
        for mine, theirs in zip(found, alone, strict=True):
            for name, values in theirs.items():
                assert mine[name] == pytest.approx(values, abs=1e-6), name


def test_a_failure_in_one_process_is_an_error_in_all_and_nobody_waits(run_ranks):
    def fail_in_one(ranks):
        def action():
            if ranks.number == 1:
                raise ValueError("no memory")
            return ranks.number

        return ranks.together(action)

    started = time.monotonic()
    first, second, third = run_ranks(3, fail_in_one)
    assert second == "ValueError: no memory"
    assert first == third == "RankError: process 1 failed: ValueError: no memory"
    assert time.monotonic() - started < 30


def test_a_failure_in_a_turn_is_an_error_in_all_and_nobody_waits(run_ranks):
    def fail_at_two(ranks):
        def make():
            for number in ranks.share(range(6)):
                if number == 2:
                    raise ValueError("no memory")
                yield number

        return list(ranks.in_turns(make()))

    started = time.monotonic()
    first, second = run_ranks(2, fail_at_two)
    assert first == "ValueError: no memory"
    assert second == "RankError: process 0 failed: ValueError: no memory"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("stays", [False, True])
def test_a_process_that_never_comes_is_not_waited_for(run_ranks, stays):
    """It has ended, or it does something else, as a training that was stopped early in one process."""

    def leave(ranks):
        if ranks.number == 1:
            time.sleep(3 if stays else 0)
            return "left"
        return ranks.gather(ranks.number)

    started = time.monotonic()
    stayed, left = run_ranks(2, leave, timeout=1.0)
    assert left == "left"
    assert stayed.startswith("RankError: a process has stopped or is late")
    assert time.monotonic() - started < 30
