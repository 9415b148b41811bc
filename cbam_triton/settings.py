"""Which backend and schedule run: from the environment, or from `with` blocks of one task or thread."""

import functools
import inspect
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakSet

import torch

Backend = Literal["auto", "triton", "reference"]
Schedule = Literal["auto", "staged", "wavefront"]

_CHOICES = {"backend": ("auto", "triton", "reference"), "schedule": ("auto", "staged", "wavefront")}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Options(NamedTuple):
    """Names of a backend and a schedule."""

    backend: str
    schedule: str


class _Choice:
    """What holds inside one block: the options that it asks for, and those of the choice around it for the rest.

    A block may end before one that began inside it, and in another task or thread than it began in. Its choice then
    asks for nothing, so whoever still holds the choice sees the one around it.
    """

    def __init__(self, asked: dict[str, str], outer: "_Choice | None" = None, block: "settings | None" = None) -> None:
        self.backend, self.schedule = "auto", "auto"
        self.asked, self.outer, self.block = asked, outer, block
        self.inner: WeakSet[_Choice] = WeakSet()
        if outer is not None:
            outer.inner.add(self)
        self._settle()

    def end(self) -> None:
        """Ask for nothing any more."""
        self.asked, self.block = {}, None
        self._settle()

    def live(self) -> "_Choice":
        """This choice, or the first around it that has not ended."""
        choice = self
        while choice.block is None and choice.outer is not None:
            choice = choice.outer
        return choice

    def _settle(self) -> None:
        for option in _CHOICES:
            around = "auto" if self.outer is None else getattr(self.outer, option)
            setattr(self, option, self.asked.get(option, around))
        for choice in list(self.inner):
            choice._settle()


_innermost: ContextVar[_Choice] = ContextVar("cbam_triton.settings")


class _Process(_Choice):
    """The choice around all blocks, and the way to the innermost one of the running task or thread.

    Outside of all blocks `ContextVar.get` returns its argument, here this object. torch.compile takes a property whose
    getter is written in C for an attribute: it guards on what the property returns, in the thread and task that asks.
    """

    innermost = property(_innermost.get)


def _checked(option: str, value: object, name: str) -> str:
    allowed = _CHOICES[option]
    known = f"{name} must be one of {', '.join(allowed)}, got {value!r}: choose one of these"
    if not isinstance(value, str):
        raise TypeError(known)
    if value not in allowed and not (option == "schedule" and value.startswith("{")):
        raise ValueError(known)
    return value


def _text_of(config: object) -> str:
    """The JSON of a candidate, or of a file that holds one."""
    text = str(config)
    if isinstance(config, (str, os.PathLike)) and not text.startswith("{"):
        with open(text, encoding="utf-8") as file:
            text = file.read().strip()
    try:
        if isinstance(json.loads(text), dict):
            return text
    except ValueError:
        pass
    raise ValueError(
        f"config must be a Candidate, its JSON, or a file with that, got {text[:80]!r}: "
        "`python -m bench space --json` writes candidates"
    )


def _from_environment() -> dict[str, str]:
    names = {option: f"CBAM_TRITON_{option.upper()}" for option in _CHOICES}
    return {option: _checked(option, os.environ.get(name, "auto"), name) for option, name in names.items()}


class Labels:
    """How many blocks want the profiler's labels; the environment's CBAM_TRITON_PROFILE=1 counts as one.

    The number is the whole process's, as torch.profiler is: gradients run in threads of their own.
    """

    blocks = int(os.environ.get("CBAM_TRITON_PROFILE") == "1")


_process = _Process(_from_environment())
_lock = threading.RLock()  # the garbage collector may end a block while another one begins
# The options of a block inside a function that torch.compile traces. Where Python runs, it is None.
_traced: _Options | None = None


def current_backend() -> str:
    """The backend that is asked for: "auto", "triton" or "reference"."""
    return _process.innermost.backend if _traced is None else _traced.backend


def current_schedule() -> str:
    """The schedule that is asked for: "auto", "staged", "wavefront", or the JSON of a candidate."""
    return _process.innermost.schedule if _traced is None else _traced.schedule


class settings:
    """Choose the backend and the schedule inside a `with` block or a decorated function.

    `backend` is "triton" (an error where kernels cannot run), "reference" (plain PyTorch) or "auto" (Triton where its
    active driver, or its interpreter, takes x's device; else the reference). `schedule` is "staged", "wavefront" or
    "auto" (by shape and device). `config` is a `tuning.Candidate`, its JSON or the path of a file with that: every
    launch inside takes this schedule and these tile sizes. None leaves a choice as it is. With `profile` each launch of
    a kernel has a label in torch.profiler, such as "cbam_triton 8x64x56x56 float16: channel_pool", in the whole process
    while the block runs.
    A block is of the task or thread that runs it, as torch.no_grad is of its thread: other tasks and threads do not see
    it, except those that asyncio starts inside of it. The environment's CBAM_TRITON_BACKEND and CBAM_TRITON_SCHEDULE
    are for the whole process. Blocks nest, end in any order, and one object may be entered again. A decorated
    generator, coroutine or asynchronous generator has the setting while its own body runs.

        with cbam_triton.settings(backend="reference"):
            y = layer(x)

    Raises: ValueError for an unknown name, for a config that is none, and for a schedule beside a config; TypeError for
    a value that is no name and for a class to decorate; OSError for a file that cannot be read. A config that a layer
    does not take is a ValueError of the call.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        schedule: Schedule | None = None,
        *,
        config: object = None,
        profile: bool = False,
    ) -> None:
        if not isinstance(profile, bool):
            raise TypeError(f"profile must be True or False, got {profile!r}: pass one of these")
        self._profile = profile
        if config is not None and schedule is not None:
            raise ValueError("config has a schedule of its own: leave schedule out")
        given: dict[str, object] = {"backend": backend, "schedule": schedule if config is None else _text_of(config)}
        self._asked = {name: _checked(name, value, name) for name, value in given.items() if value is not None}
        self._entered: list[_Choice] = []
        self._traced: list[_Options | None] = []

    def __enter__(self) -> "settings":
        if torch.compiler.is_dynamo_compiling():
            self._enter_traced()
            return self
        with _lock:
            choice = _Choice(self._asked, _process.innermost.live(), self)
            self._entered.append(choice)
            Labels.blocks += self._profile
        _innermost.set(choice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if torch.compiler.is_dynamo_compiling():
            self._exit_traced()
            return
        with _lock:
            choice = self._innermost_choice()
            self._entered.remove(choice)
            Labels.blocks -= self._profile
            choice.end()
        _innermost.set(_process.innermost.live())

    def _innermost_choice(self) -> _Choice:
        """The last choice of this block that this task or thread made; else the last of any."""
        if not self._entered:
            raise RuntimeError("this settings block has not begun, or has ended: enter it first, with `with`")
        choice: _Choice | None = _process.innermost
        while choice is not None and choice.block is not self:
            choice = choice.outer
        return self._entered[-1] if choice is None else choice

    def _enter_traced(self) -> None:
        global _traced
        self._traced.append(_traced)
        backend, schedule = current_backend(), current_schedule()
        _traced = _Options(self._asked.get("backend", backend), self._asked.get("schedule", schedule))

    def _exit_traced(self) -> None:
        global _traced
        _traced = self._traced.pop()

    def __call__(self, function: _Function) -> _Function:
        if isinstance(function, type) or not callable(function):
            raise TypeError(f"settings decorates functions and methods, got {function!r}: decorate its forward instead")
        body = function if inspect.isroutine(function) or isinstance(function, functools.partial) else function.__call__
        if inspect.iscoroutinefunction(body):
            wrapper = self._coroutine(function)
        elif inspect.isasyncgenfunction(body):
            wrapper = self._async_generator(function)
        elif inspect.isgeneratorfunction(body):
            wrapper = self._generator(function)
        else:
            wrapper = self._function(function)
        return functools.wraps(function)(wrapper)  # pyright: ignore[reportReturnType]

    def _again(self) -> "settings":
        """A block of its own for each call; PyTorch 2.8 compiles none that was made outside of the function."""
        return settings(**self._asked, profile=self._profile)  # pyright: ignore[reportArgumentType]

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with self._again():
                return function(*arguments, **options)

        return wrapper

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*arguments: Any, **options: Any) -> Any:
            with self._again():
                return await function(*arguments, **options)

        return wrapper

    # A generator runs in the task of whoever asks for its next value, who must not see the block in between.
    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Generator[Any, Any, Any]:
            generator = function(*arguments, **options)
            step: Callable[[], Any] = functools.partial(generator.send, None)
            try:
                while True:
                    with self._again():
                        value = step()
                    try:
                        step = functools.partial(generator.send, (yield value))
                    except GeneratorExit:
                        with self._again():
                            generator.close()
                        raise
                    except BaseException as error:
                        step = functools.partial(generator.throw, error)
            except StopIteration as stop:
                return stop.value

        return wrapper

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*arguments: Any, **options: Any) -> AsyncGenerator[Any, Any]:
            generator = function(*arguments, **options)
            step: Callable[[], Any] = functools.partial(generator.asend, None)
            try:
                while True:
                    with self._again():
                        value = await step()
                    try:
                        step = functools.partial(generator.asend, (yield value))
                    except GeneratorExit:
                        with self._again():
                            await generator.aclose()
                        raise
                    except BaseException as error:
                        step = functools.partial(generator.athrow, error)
            except StopAsyncIteration:
                return

        return wrapper

    def __repr__(self) -> str:
        asked = self._asked
        profile = ", profile=True" * self._profile
        return f"settings(backend={asked.get('backend')!r}, schedule={asked.get('schedule')!r}{profile})"
