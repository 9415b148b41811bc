"""`settings` as a decorator of every kind of function, in asyncio's tasks, and in what torch.compile compiled."""

import asyncio
import functools
import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from cbam_triton import settings
from cbam_triton.settings import current_backend, current_schedule

chosen = settings(backend="reference")


def test_settings_decorate_a_function():
    @settings(schedule="staged")
    def inside() -> str:
        """What it says."""
        return current_schedule()

    assert inside() == "staged"
    assert (inside.__name__, inside.__doc__) == ("inside", "What it says.")


def test_settings_decorate_a_coroutine():
    @chosen
    async def inside() -> str:
        await asyncio.sleep(0)
        return current_backend()

    async def main():
        return await inside(), current_backend()

    before = current_backend()
    assert asyncio.run(main()) == ("reference", before)


def test_a_decorated_generator_has_the_setting_and_its_caller_has_not():
    log = []

    @chosen
    def inside():
        try:
            log.append((yield 0, current_backend()))
            log.append((yield 1, current_backend()))
        except KeyError:
            log.append(current_backend())
        finally:
            log.append(current_backend())
        return current_backend()

    before = current_backend()
    generator = inside()
    assert next(generator) == (0, "reference")
    assert current_backend() == before
    assert generator.send("sent") == (1, "reference")
    assert current_backend() == before
    with pytest.raises(StopIteration) as stopped:
        generator.throw(KeyError)
    assert stopped.value.value == "reference"
    assert log == ["sent", "reference", "reference"]
    closed = inside()
    next(closed)
    closed.close()
    assert log[3:] == ["reference"]
    assert current_backend() == before


def test_a_decorated_asynchronous_generator_has_the_setting_and_its_caller_has_not():
    @chosen
    async def inside(log):
        try:
            for i in range(2):
                await asyncio.sleep(0)
                log.append((yield i, current_backend()))
        finally:
            log.append(current_backend())

    async def main():
        log, seen = [], []
        async for value in inside(log):
            seen += [value, current_backend()]
        generator = inside(log)
        seen += [await anext(generator), await generator.asend("sent"), current_backend()]
        await generator.aclose()
        return seen, log

    before = current_backend()
    seen, log = asyncio.run(main())
    assert seen == [(0, "reference"), before, (1, "reference"), before, (0, "reference"), (1, "reference"), before]
    assert log == [None, None, "reference", "sent", "reference"]


@pytest.mark.parametrize("kind", [functools.partial, lambda f: type("Called", (), {"__call__": f})()])
def test_what_is_called_like_a_coroutine_is_decorated_like_one(kind):
    async def inside(*_):
        await asyncio.sleep(0)
        return current_backend()

    assert asyncio.run(chosen(kind(inside))()) == "reference"


@pytest.mark.parametrize("what", [torch.nn.ReLU, classmethod(print), 3])
def test_what_cannot_be_decorated_is_a_type_error(what):
    with pytest.raises(TypeError, match=r"settings decorates functions and methods, got .*: decorate its forward"):
        chosen(what)


def test_a_block_is_not_seen_by_other_tasks():
    async def held(backend, begin, length, log):
        await asyncio.sleep(begin)
        with settings(backend=backend):
            await asyncio.sleep(length)
            log.append(current_backend() == backend)
        log.append(current_backend())

    async def main():
        log = []
        await asyncio.gather(held("reference", 0, 0.03, log), held("triton", 0.01, 0.05, log))
        return log

    before = current_backend()
    assert asyncio.run(main()) == [True, before, True, before]
    assert current_backend() == before


def test_a_task_that_begins_in_a_block_has_it_until_the_block_ends():
    async def main():
        ended = asyncio.Event()

        async def task():
            first = current_backend()
            await ended.wait()
            return first, current_backend()

        with settings(backend="reference"):
            begun = asyncio.create_task(task())
            await asyncio.sleep(0)
        ended.set()
        return await begun

    before = current_backend()
    assert asyncio.run(main()) == ("reference", before)


def _sign(x):
    return x - 1 if current_backend() == "reference" else x + 1


def test_compiled_code_follows_the_block_of_its_own_thread_without_compiling_again():
    counter = CompileCounter()
    compiled = torch.compile(_sign, backend=counter, fullgraph=True)
    x = torch.zeros(1)
    begun, ended, seen = threading.Event(), threading.Event(), []

    def other():
        with settings(backend="reference"):
            begun.set()
            ended.wait(60)
            seen.append(compiled(x).item())

    assert compiled(x).item() == 1
    with settings(backend="reference"):
        assert compiled(x).item() == -1
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    assert compiled(x).item() == 1
    ended.set()
    thread.join()
    assert seen == [-1]
    assert compiled(x).item() == 1
    assert counter.frame_count == 2


def test_compiled_code_follows_the_block_of_its_own_task():
    compiled = torch.compile(_sign, backend="eager", fullgraph=True)

    async def called(backend, begin):
        await asyncio.sleep(begin)
        with settings(backend=backend):
            await asyncio.sleep(0.02)
            return compiled(torch.zeros(1)).item()

    async def main():
        return await asyncio.gather(called("reference", 0), called("auto", 0.01), called("reference", 0.005))

    assert asyncio.run(main()) == [-1, 1, -1]


def test_blocks_inside_compiled_code_are_part_of_its_graph():
    @settings(backend="auto")
    def decorated(x):
        return _sign(x)

    def steps(x):
        before = _sign(x)
        with settings(backend="reference"):
            inside = _sign(x)
            with settings(schedule="staged"):
                deeper = _sign(x)
            other = decorated(x)
        return before, inside, deeper, other, _sign(x)

    compiled = torch.compile(steps, backend="eager", fullgraph=True)
    assert [y.item() for y in compiled(torch.zeros(1))] == [1, -1, -1, 1, 1]
    with settings(backend="reference"):
        assert [y.item() for y in compiled(torch.zeros(1))] == [-1, -1, -1, 1, -1]
    assert current_backend() == "auto"
