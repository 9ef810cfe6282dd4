"""Runs requested functions: plain ones on worker threads, coroutines on an event loop.

`submit` and `cancel` are for the loop thread; functions run on the threads of a worker pool, in
worker processes (`genrpc.processes`), on the coroutine thread, or, if they were declared
non-blocking, on the loop thread itself. Whatever a function raises becomes a reply.
Over 400 lines, since all ways to run a function share its lanes, deadlines and cancelling.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast

from genrpc import codec, neutral
from genrpc.errors import CodecError, Execution, Throw
from genrpc.loops import LoopThread
from genrpc.policy import Policy
from genrpc.pool import THREADS, Worker, WorkerPool
from genrpc.processes import Processes, WorkerProcess
from genrpc.protocol.pending import ERROR, PICKLE, THROWN, VALUE, IncomingCall, payload_size
from genrpc.settings import Settings
from genrpc.telemetry import RateLimitedLog

if TYPE_CHECKING:
    from genrpc.protocol.pending import Buffer, Encoding, Kind, Outcome, Target

log = logging.getLogger("genrpc")

STALL_SECONDS = 0.005
"""How long a function that was declared non-blocking may take."""

MAX_KNOWN = 4096
"""Functions that are remembered once they were found and allowed."""

NONBLOCKING_MARK = "__genrpc_nonblocking__"

Work = IncomingCall | Callable[[], object]
"""What a worker does: run a call, or call a function that a user attached to a key."""

_GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)


class Running:
    """What a function can learn about the call that it runs for."""

    # Not a frozen dataclass: making one of those costs a call half a microsecond more.
    __slots__ = ("call", "node")

    def __init__(self, node: Any, call: IncomingCall) -> None:  # noqa: ANN401
        self.node = node  # the Node; the layers above know its type
        self.call = call


current: contextvars.ContextVar[Running | None] = contextvars.ContextVar(
    "genrpc_call", default=None
)
"""The call that the running code runs for; None outside of any."""


class UnaryCall(IncomingCall):
    """A call of a unary method, whose reply may be encoded in another way than its request.

    `began_at` is when a worker took it, on the loop's clock; 0.0 before.
    """

    __slots__ = ("began_at", "reply_encoding")

    def __init__(
        self,
        target: Target,
        kind: Kind,
        encoding: int,
        reply_encoding: int,
        deadline: float | None,
        head: bytes,
        buffers: Sequence[bytes] = (),
    ) -> None:
        super().__init__(0, target, kind, cast("Encoding", encoding), deadline, head, buffers)
        self.reply_encoding = reply_encoding
        self.began_at = 0.0


class _RefusedError(Exception):
    """The call cannot be run; `reply` is the encoded error."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply


class Executor:
    """The workers and the coroutine loop of one node."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: Any,  # noqa: ANN401  # the Node; the layers above know its type
        policy: Policy,
        *,
        max_workers: int,
        nonblocking: frozenset[str] = frozenset(),
        tracebacks: bool = True,
        max_depth: int = 100,
    ) -> None:
        self._use_policy(policy)
        self._loop = loop
        self._node = node
        self._max_workers = max_workers
        self._nonblocking = nonblocking
        self._tracebacks = tracebacks
        self._max_depth = max_depth
        self._threads: WorkerPool[Work] = WorkerPool(
            loop, self._work, lambda worker: None, max_workers, THREADS
        )
        self._processes: Processes | None = None
        self._lanes: dict[Hashable, deque[IncomingCall]] = {}
        self._lanes_lock = threading.Lock()
        self._coroutines: LoopThread | None = None
        self._coroutines_lock = threading.Lock()
        # By target: how it ran last. "coroutine" and "nonblocking" are asked for before
        # a worker is; what is not here is for workers.
        self._routes: dict[tuple[str, str], str] = {}
        self._stalled: set[tuple[str, str]] = set()
        self._stopped = False
        self._log = RateLimitedLog(log)

    def use_processes(self, node: str, settings: Settings) -> None:
        """Let calls run in worker processes as the settings say; before the first call."""
        self._processes = Processes(self._loop, node, settings, self.answer)

    def change_policy(self, control: str, entries: Sequence[str]) -> None:
        """Let another policy hold from now on; on the loop thread."""
        self._use_policy(Policy(control, entries))
        if self._processes is not None:
            self._processes.change_policy(control, entries)

    def _use_policy(self, policy: Policy) -> None:
        self.policy = policy
        # What decodes the pickles that come, results too; None: they may reach everything.
        self.unpickle: codec.Unpickle | None = policy.unpickle if policy.restricts_pickles else None
        # A new one, and after the policy: a worker that is about to remember what the former
        # policy allowed does so in the former one.
        self._known: dict[Target, tuple[types.ModuleType, Callable[..., object]]] = {}

    # ------------------------------------------------------------ the loop thread's side

    def submit_all(self, calls: Sequence[IncomingCall]) -> None:
        """As `submit`, for a frame full of calls: at once if they are all for worker threads."""
        if self._routes or self._processes is not None:
            for call in calls:
                self.submit(call)
        else:
            self._threads.put_all(
                [call for call in calls if call.lane is None or self._enter_lane(call)]
            )

    def submit(self, call: IncomingCall) -> None:
        """Have a call run: its outcome goes to its sink. On the loop thread."""
        if call.lane is not None and not self._enter_lane(call):
            return
        route = self._routes.get(call.target[:2]) if self._routes else None
        if route is None or call.encoding != PICKLE:
            # Neutral arguments take many times longer to decode: always on a worker.
            self.put(call)
        elif route == "coroutine":
            self._coroutine_thread().call(self.run, call)
        else:
            self._run_in_place(call)

    def put(self, work: Work) -> None:
        """Have a worker run a call, or call a function; on the loop thread."""
        self._pool_for(work).put(work)

    def _pool_for(self, work: Work) -> WorkerPool[Work]:
        processes = self._processes
        if processes is not None and isinstance(work, IncomingCall) and processes.takes(work):
            return processes.pool
        return self._threads

    def cancel(self, call: IncomingCall) -> None:
        """Nobody waits any more: what has not begun is dropped, a coroutine is cancelled."""
        call.cancelled = True
        if isinstance(call.task, asyncio.Task) and self._coroutines is not None:
            self._coroutines.call(call.task.cancel)
        elif isinstance(call.task, WorkerProcess):
            call.task.cancel()

    def stop(self) -> None:
        """Let the workers go; what still runs on them is left alone. On the loop thread.

        Coroutines are cancelled.
        """
        with self._coroutines_lock:
            self._stopped = True
            if self._coroutines is not None:
                self._coroutines.stop()
        self._threads.stop()
        if self._processes is not None:
            self._processes.stop()

    def statistics(self) -> dict[str, int]:
        """How many workers there are and how busy they are."""
        pools = [self._threads]
        if self._processes is not None:
            pools.append(self._processes.pool)
        workers = [worker for pool in pools for worker in pool.workers]
        busy = sum(not worker.idle for worker in workers)
        queued = sum(pool.waiting for pool in pools)
        return {"workers": len(workers), "running": busy, "queued": queued}

    # ------------------------------------------------------------ lanes

    def _enter_lane(self, call: IncomingCall) -> bool:
        """Whether the call may run now; else it does when those before it have ended."""
        with self._lanes_lock:
            lane = self._lanes.get(call.lane)
            if lane is None:
                self._lanes[call.lane] = deque()
                return True
            lane.append(call)
            return False

    def _leave_lane(self, call: IncomingCall) -> None:
        with self._lanes_lock:
            lane = self._lanes[call.lane]
            if not lane:
                del self._lanes[call.lane]
                return
            following = lane.popleft()
        if self._coroutines is None and self._processes is None:
            self._threads.put_from_worker(following)  # whoever comes from here takes it next
        else:
            self._loop.call_soon_threadsafe(self.put, following)

    # ------------------------------------------------------------ the workers' side

    def _work(self, _: Worker, work: Work) -> None:
        if isinstance(work, IncomingCall):
            try:  # not by `run`: a call less for each call
                self._run(work)
            except BaseException as exc:
                self._broke(work, exc)
        else:
            self._call_back(work)

    def _call_back(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException:  # a user's callback; it must not take the worker along
            log.exception("A callback of a call raised")

    def run(self, call: IncomingCall) -> None:
        """Run a call here and now; whatever happens, its outcome goes to its sink."""
        try:
            self._run(call)
        except BaseException as exc:
            self._broke(call, exc)

    def _broke(self, call: IncomingCall, exc: BaseException) -> None:
        """No call may take its thread along, nor stay unanswered, whatever is wrong here."""
        log.error("Running %s:%s went wrong", *call.target[:2], exc_info=exc)
        if call.encoding == PICKLE:
            reply = codec.encode_exception(exc, execution="unknown")
        else:  # a stranger to Python, who learns nothing of our insides
            message = "This node failed to run the call; its log says why."
            reply = codec.encode_error("exit", "unknown", message)
        self.answer(call, ERROR, reply)

    def _run(self, call: IncomingCall) -> None:
        """Run a call to its end, or to the point where its coroutine was started."""
        now = time.monotonic()
        if call.cancelled or (call.deadline is not None and call.deadline < now):
            self.answer(call, ERROR, codec.encode_error("timeout", "not_started"))
            return
        try:
            function = self._resolve(call)
            args, kwargs = self._arguments(call)
        except _RefusedError as refused:
            self.answer(call, ERROR, refused.reply)
            return
        except BaseException as exc:  # a module's or a class's own code ran on the way
            self.answer(call, ERROR, self._missing(call, exc))
            return
        call.head, call.buffers = b"", ()  # not to be kept while the function runs
        token = current.set(Running(self._node, call))
        try:
            result = function(*args, **kwargs)
        except BaseException as exc:  # whatever it is, SystemExit included, it becomes a reply
            self._answer_exception(call, exc)
            return
        finally:
            current.reset(token)
        if result.__class__ is types.CoroutineType:
            # Only where it is sure of the next one too: genrpc.apply, for one, may block.
            if inspect.iscoroutinefunction(function):
                self._routes[call.target[:2]] = "coroutine"
            self._await(call, result)
        else:
            self._answer_value(call, VALUE, result)

    def _run_in_place(self, call: IncomingCall) -> None:
        """Run a function that promised not to block, here on the loop thread."""
        name = call.target[:2]
        module = sys.modules.get(name[0])
        function = getattr(module, name[1], None)
        if module is None or not self._is_nonblocking(name, function):
            self._routes.pop(name, None)
            self.put(call)
            return
        begin = time.monotonic()
        self.run(call)
        taken = time.monotonic() - begin
        if taken > STALL_SECONDS and name in self._routes:
            self._routes.pop(name)
            self._stalled.add(name)
            log.warning(
                "%s:%s was declared non-blocking and took %.1f ms: from now on it runs on a worker",
                *name,
                taken * 1000,
            )

    def _is_nonblocking(self, name: tuple[str, str], function: object) -> bool:
        if name in self._stalled:
            return False
        listed = self._nonblocking
        return (
            getattr(function, NONBLOCKING_MARK, False) is True
            or name[0] in listed
            or f"{name[0]}:{name[1]}" in listed
        )

    # ------------------------------------------------------------ finding the function

    def _resolve(self, call: IncomingCall) -> Callable[..., object]:
        # What was found and allowed once is so as long as it is the same object under the same
        # name: 0.3 us for a call instead of 2.
        remembered = self._known
        known = remembered.get(call.target)
        if known is not None:
            module, function = known
            loaded = sys.modules.get(call.target[0])
            is_same = loaded is module and getattr(module, call.target[1], None) is function
            if is_same:
                return function
        module, function = self._find(call)
        if not call.target[2] and "." not in call.target[1]:
            if len(remembered) >= MAX_KNOWN:
                remembered.clear()
            remembered[call.target] = module, function
        return function

    def _find(self, call: IncomingCall) -> tuple[types.ModuleType, Callable[..., object]]:
        module_name, function_name, version = call.target
        module = sys.modules.get(module_name)
        if module is None or getattr(module, "__spec__", None) is None or _is_initializing(module):
            module = self._import(call)
        if version and str(getattr(module, "__version__", None)) != version:
            raise _RefusedError(_incompatible(module, version))
        try:
            target: object = module
            for part in function_name.split("."):
                target = getattr(target, part)
        except Exception as exc:  # a module's or a class's own __getattr__ may raise anything
            raise _RefusedError(self._missing(call, exc)) from None
        if not self.policy.admits(module, module_name, function_name, target):
            raise _RefusedError(unauthorized(module_name, function_name))
        if not callable(target):
            fault = f"{module_name}:{function_name} is no function: it cannot be called"
            raise _RefusedError(self._missing(call, TypeError(fault)))
        if "." in function_name and not _is_method(module_name, module, function_name):
            fault = f"{module_name}:{function_name} is no method of a class that it defines"
            raise _RefusedError(self._missing(call, AttributeError(fault)))
        name = (module_name, function_name)
        if name not in self._routes and self._is_nonblocking(name, target):
            self._routes[name] = "nonblocking"
        return module, target

    def _import(self, call: IncomingCall) -> types.ModuleType:
        name, _, version = call.target
        try:
            return importlib.import_module(name)
        except BaseException as exc:  # importing runs code, which may raise anything
            if version and isinstance(exc, ModuleNotFoundError):
                raise _RefusedError(_incompatible(None, version)) from None
            raise _RefusedError(self._missing(call, exc)) from None

    def _missing(self, call: IncomingCall, exc: BaseException) -> bytes:
        reason = "undef" if isinstance(exc, (ImportError, AttributeError)) else "exit"
        return codec.encode_exception(
            exc,
            execution="not_started",
            reason=reason,
            tracebacks=self._tracebacks,
            pickles=call.encoding == PICKLE,
        )

    def _arguments(self, call: IncomingCall) -> tuple[tuple[object, ...], dict[str, object]]:
        if call.encoding != PICKLE:
            return self._neutral_arguments(call)
        try:
            return codec.decode_arguments(call.head, call.buffers, unpickle=self.unpickle)
        except CodecError as exc:
            raise _RefusedError(_bad_arguments(_as_sentence(exc))) from None

    def _neutral_arguments(
        self, call: IncomingCall
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        if isinstance(call, UnaryCall):
            call.began_at = time.monotonic()
        elif call.encoding == neutral.VALUES:
            raise _RefusedError(_bad_arguments("That payload encoding is none of the stream's."))
        try:
            return neutral.decode_arguments(
                call.encoding, call.head, call.buffers, max_depth=self._max_depth
            )
        except CodecError as exc:
            raise _RefusedError(_bad_arguments(_as_sentence(exc))) from None
        except Exception:  # whatever it is, it must not take the worker along
            log.exception("Decoding arguments failed")
            raise _RefusedError(_bad_arguments("The arguments cannot be decoded.")) from None

    # ------------------------------------------------------------ coroutines

    def _coroutine_thread(self) -> LoopThread:
        with self._coroutines_lock:
            if self._stopped:
                raise RuntimeError("the node was stopped before the coroutine began")
            if self._coroutines is None:
                self._coroutines = LoopThread("genrpc-coroutines")
            return self._coroutines

    def _await(self, call: IncomingCall, coroutine: types.CoroutineType[Any, Any, object]) -> None:
        try:
            thread = self._coroutine_thread()
            if threading.get_ident() == thread.ident:
                call.task = thread.spawn(self._supervise(call, coroutine))
            else:
                thread.call(self._await, call, coroutine)
        except RuntimeError as exc:
            coroutine.close()
            self._answer_exception(call, exc)

    async def _supervise(
        self, call: IncomingCall, coroutine: types.CoroutineType[Any, Any, object]
    ) -> None:
        """Run a coroutine function to its end."""
        current.set(Running(self._node, call))
        try:
            if call.cancelled:
                coroutine.close()
                raise asyncio.CancelledError
            result = await coroutine
        except BaseException as exc:  # as in _run; a cancellation is the caller's or its own
            answer = functools.partial(self._answer_exception, call, exc)
        else:
            answer = functools.partial(self._answer_value, call, VALUE, result)
        try:
            answer()
        except BaseException as exc:
            self._broke(call, exc)

    # ------------------------------------------------------------ answering

    def _answer_exception(self, call: IncomingCall, exc: BaseException) -> None:
        if isinstance(exc, Throw):
            self._answer_value(call, THROWN, exc.value)
            return
        if call.is_cast and not call.cancelled:
            key = (call.target, type(exc))
            self._log.warning(key, "A cast of %s:%s raised %s", *call.target[:2], _shown(exc))
        reply = codec.encode_exception(
            exc,
            execution="finished",
            tracebacks=self._tracebacks,
            pickles=call.encoding == PICKLE,
        )
        self.answer(call, ERROR, reply)

    def _answer_value(self, call: IncomingCall, outcome: Outcome, value: object) -> None:
        if call.kind and call.is_cast:
            self.answer(call, outcome, b"")
            return
        if isinstance(value, _GENERATORS):
            message = (
                "The function returned a generator, which cannot be carried over:"
                " let it return a list."
            )
            self._answer_failure(call, "bad_result", "finished", message)
            return
        if call.encoding != PICKLE:
            self._answer_neutral(call, outcome, value)
            return
        try:
            # A snapshot: the function may go on to change what it returned.
            head, buffers = codec.encode_value(value, snapshot=True)
        except CodecError as exc:
            self._answer_failure(call, "bad_result", "finished", _as_sentence(exc))
            return
        size = payload_size(head, buffers) if buffers else len(head)
        if size > call.max_reply_bytes:
            message = (
                f"The result has {size} bytes, over max_message_bytes ({call.max_reply_bytes})."
            )
            self._answer_failure(call, "too_large", "finished", message)
            return
        self.answer(call, outcome, head, buffers)

    def _answer_neutral(self, call: IncomingCall, outcome: Outcome, value: object) -> None:
        encoding = call.reply_encoding if isinstance(call, UnaryCall) else call.encoding
        try:
            head = neutral.encode_value(
                encoding, value, max_depth=self._max_depth, max_bytes=call.max_reply_bytes
            )
        except neutral.OversizeError as exc:
            self._answer_failure(call, "too_large", "finished", _as_sentence(exc))
        except CodecError as exc:
            self._answer_failure(call, "bad_result", "finished", _as_sentence(exc))
        except Exception:  # whatever it is, the caller gets an answer
            log.exception("Encoding a result of %s:%s failed", *call.target[:2])
            self._answer_failure(call, "bad_result", "finished", "The result cannot be encoded.")
        else:
            self.answer(call, outcome, head)

    def _answer_failure(
        self, call: IncomingCall, reason: str, execution: Execution, message: str
    ) -> None:
        self.answer(call, ERROR, codec.encode_error(reason, execution, message))

    def answer(
        self,
        call: IncomingCall,
        outcome: Outcome,
        head: bytes,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Give a call's outcome to its sink, and its lane to the next; from any thread."""
        if call.lane is not None:
            self._leave_lane(call)
        call.task = None
        assert call.sink is not None
        call.sink.post((call, outcome, head, buffers))


def unauthorized(module: str, function: str) -> bytes:
    """The reply to a call that the policy forbids."""
    message = (
        f"The node's policy does not allow {module}:{function}: it is up to its operator, by"
        " rpc_module_control and rpc_module_list."
    )
    return codec.encode_error("unauthorized", "not_started", message)


def _bad_arguments(message: str) -> bytes:
    return codec.encode_error("bad_arguments", "not_started", message)


def _incompatible(module: types.ModuleType | None, version: str) -> bytes:
    if module is None:
        message = f"The node does not have the module of which version {version} was asked for."
    else:
        found = getattr(module, "__version__", None)
        has = f"version {found}" if found is not None else "no __version__"
        message = f"{module.__name__} has {has} on the node, not {version}, which was asked for."
    return codec.encode_error("incompatible", "not_started", message)


def _is_initializing(module: types.ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


def _is_method(module_name: str, module: types.ModuleType, function_name: str) -> bool:
    """Whether "Class.method" names a class that the module defines, and no other thing."""
    class_name, _, _ = function_name.partition(".")
    cls = getattr(module, class_name, None)
    return isinstance(cls, type) and cls.__module__ == module_name


def _as_sentence(exc: CodecError) -> str:
    text = str(exc)
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def _shown(exc: BaseException) -> str:
    try:
        return repr(exc)
    except BaseException:  # a user's own __repr__ may raise anything
        return f"<unprintable {type(exc).__name__}>"
