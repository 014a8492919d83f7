"""A forced backend is that of its context: threads, tasks and compiled code."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import torch

import fastforget as ff
from fastforget.ops import noise


def test_blocks_of_two_threads_that_end_crosswise_leave_nothing_forced():
    entered, both, left = threading.Event(), threading.Event(), threading.Event()
    seen = {}

    def first():
        with ff.use_backend("reference"):
            entered.set()
            both.wait(10)
            seen["first"] = ff.backend.forced
        left.set()
        seen["first after"] = ff.backend.forced

    def second():
        entered.wait(10)
        seen["second before"] = ff.backend.forced
        with ff.use_backend("native"):
            both.set()
            left.wait(10)
            seen["second"] = ff.backend.forced
        seen["second after"] = ff.backend.forced

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {
        "first": "reference", "first after": None, "second before": None, "second": "native", "second after": None,
    }  # fmt: skip
    assert ff.backend.forced is None


def test_a_thread_of_a_forced_block_is_not_forced():
    seen = []
    with ff.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(ff.backend.forced))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tasks_that_take_turns_keep_their_own():
    async def run(name):
        seen = []
        with ff.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(ff.backend.forced)
        return seen, ff.backend.forced

    async def both():
        return await asyncio.gather(run("reference"), run("native"))

    assert asyncio.run(both()) == [(["reference"] * 3, None), (["native"] * 3, None)]
    assert ff.backend.forced is None and ff.backend.forced_in_trace() is None


def test_blocks_of_generators_that_end_crosswise_leave_nothing_forced():
    def held(name):
        with ff.use_backend(name):
            yield ff.backend.forced

    first, second = held("reference"), held("native")
    assert (next(first), next(second)) == ("reference", "native")
    first.close()
    assert ff.backend.forced == "native"
    second.close()
    assert ff.backend.forced is None and ff.backend.forced_in_trace() is None


def test_blocks_within_each_other_and_an_error():
    with ff.use_backend("native"):
        with contextlib.suppress(KeyError), ff.use_backend("reference"):
            raise KeyError
        assert ff.backend.forced == "native"
    assert ff.backend.forced is None


def test_compiled_code_is_compiled_again_where_another_one_is_forced():
    def f(x):
        return noise.add_normal_(x, 0.5, seed=1)

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    free = compiled(torch.zeros(1000))
    with ff.use_backend("reference"):
        reference = f(torch.zeros(1000))
        assert torch.equal(compiled(torch.zeros(1000)), reference)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(compiled(torch.zeros(1000))))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], free)
    assert torch.equal(compiled(torch.zeros(1000)), free)
    assert torch.equal(free, f(torch.zeros(1000)))


def test_a_block_within_compiled_code():
    def f(x):
        with ff.use_backend("reference"):
            noise.add_normal_(x, 0.5, seed=1)
        return noise.add_normal_(x, 0.5, seed=2)

    assert torch.equal(torch.compile(f, fullgraph=True, backend="eager")(torch.zeros(1000)), f(torch.zeros(1000)))
    assert ff.backend.forced is None
