"""The unary methods, answered: calls of other languages on their way through the node.

They go through the same reception and executor as calls that come by a stream: the policy, the
number of calls (a token is a peer of its own), draining and counters. Their arguments and results
are never pickles, nor looked at here. All of it is for the loop thread.
Over 400 lines, since each way in has its own reading and its own errors, and all share the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import logging
import platform
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from genrpc import catalogue, codec, neutral
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, RemoteExit, message_of
from genrpc.executor import UnaryCall
from genrpc.inbound import Caller, Reception
from genrpc.names import check_target
from genrpc.protocol.pending import (
    CALL,
    CAST,
    ERROR,
    ORDERED_CAST,
    IncomingCall,
    Target,
    payload_size,
)
from genrpc.security import Cookie
from genrpc.transport import unary_messages as messages
from genrpc.transport.bearers import Bearer, Gate
from genrpc.transport.channel import SERVICE
from genrpc.transport.channelz import Channelz
from genrpc.transport.health import Health
from genrpc.transport.reflection import Reflection
from genrpc.transport.refusals import RefusedError
from genrpc.transport.unary import UnaryService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genrpc.protocol.pending import Buffer, Kind, Outcome

    Reply = tuple[IncomingCall, Outcome, bytes, Sequence[Buffer]]

log = logging.getLogger("genrpc")

T = TypeVar("T")

ENVELOPE_BYTES = 1024
"""Of max_frame_bytes, which a response may have, what is kept for all but the result."""

REPEAT_SECONDS = 600.0
"""How long the answer to an idempotency_key is remembered."""

MAX_REPEATS = 10_000
MAX_REPEAT_BYTES = 64 * 2**20

PICKLE = "application/x-python-pickle"

_NO_PICKLE = (
    "Pickles are not taken from bearers of a token, nor sent to them: use args, terms, or encoded"
    " with application/json, application/msgpack or application/cbor."
)

_REPLIES: dict[int, int] = {
    pb.REPLY_ENCODING_VALUE: neutral.VALUES,
    pb.REPLY_ENCODING_TERM: neutral.TERMS,
    pb.REPLY_ENCODING_JSON: neutral.JSON,
    pb.REPLY_ENCODING_MSGPACK: neutral.MSGPACK,
    pb.REPLY_ENCODING_CBOR: neutral.CBOR,
}


class Services:
    """What a node's listener offers besides the stream."""

    def __init__(self, reception: Reception, cookie: Cookie) -> None:
        gate = Gate(cookie, reception.node, reception.audit)
        self.desk = UnaryDesk(reception)
        self.health = Health([SERVICE])
        unary = UnaryService(self.desk, gate)
        if reception.settings.channelz:
            channelz = Channelz(gate)
            reflection = Reflection(gate, {channelz.name: channelz.descriptor})
            self.handlers = [unary, reflection, self.health, channelz]
        else:
            self.handlers = [unary, Reflection(gate), self.health]


class UnaryDesk:
    """Answers the unary methods of one node."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._loop = reception.loop
        self._started_at = reception.loop.time()
        self._casts_of: Counter[str] = Counter()
        self._repeats = _Repeats(reception.loop)
        self._listing = asyncio.Lock()

    # ------------------------------------------------------------ Call

    async def call(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Run a function and give its outcome."""
        parts = messages.parse(messages.CallRequest, request)
        caller = Caller(bearer.peer, bearer.address)
        call = self._incoming(parts.mfa, bearer, CALL, seconds, parts.reply_encoding)

        def run() -> Awaitable[bytes]:
            return self._run(call, caller)

        if not parts.idempotency_key:
            return await run()
        key = (bearer.peer, parts.idempotency_key)
        return await self._repeats.once(key, hashlib.sha256(request).digest(), run)

    async def _run(self, call: UnaryCall, caller: Caller) -> bytes:
        self._admit(call, caller)
        answered = _Answered(self._reception, caller)
        call.sink = answered
        settings = self._reception.settings
        call.max_reply_bytes = min(
            settings.max_message_bytes, max(0, settings.max_frame_bytes - ENVELOPE_BYTES)
        )
        self._reception.executor.submit(call)
        try:
            _, outcome, head, _ = await answered.reply
        except asyncio.CancelledError:  # the caller gave up, or its deadline has passed
            self._reception.executor.cancel(call)
            raise
        response = messages.CallResponse(node=self._reception.node)
        if outcome == ERROR:
            failure = codec.decode_error(head, pickles=False)
            if failure.execution == "not_started" and not isinstance(failure.reason, RemoteExit):
                raise _refusal(failure)
            response.error = head
        else:
            _put_result(response.result, call.reply_encoding, head)
        if call.began_at:
            elapsed = max(0, int((self._loop.time() - call.began_at) * 1e9))
            response.elapsed.seconds, response.elapsed.nanos = divmod(elapsed, 10**9)
        data: bytes = response.SerializeToString()
        return data

    # ------------------------------------------------------------ Cast

    async def cast(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Have a function run; a deadline does not end it."""
        parts = messages.parse(messages.CastRequest, request)
        kind = ORDERED_CAST if parts.ordering_key else CAST
        call = self._incoming(parts.mfa, bearer, kind, None, pb.REPLY_ENCODING_UNSPECIFIED)
        caller, peer = Caller(bearer.peer, bearer.address), bearer.peer
        limit = self._reception.settings.cast_window
        if self._casts_of[peer] >= limit:
            self._reception.hit_limit(call, caller, "cast_window")
            raise RefusedError(
                "overload", f"{limit} casts of this token (cast_window) are not over: cast later."
            )
        if parts.ordering_key:
            call.lane = ("unary", peer, parts.ordering_key)
        self._admit(call, caller)
        self._casts_of[peer] += 1
        call.sink = _CastOver(self._reception, caller, self._casts_of)
        self._reception.executor.submit(call)
        response: bytes = pb.CastResponse(node=self._reception.node).SerializeToString()
        return response

    # ------------------------------------------------------------ what both need

    def _admit(self, call: UnaryCall, caller: Caller) -> None:
        most = self._reception.settings.max_message_bytes
        if (size := payload_size(call.head, call.buffers)) > most:
            self._reception.hit_limit(call, caller, "max_message_bytes")
            raise RefusedError(
                "too_large",
                f"The arguments have {size} bytes, over the node's max_message_bytes ({most}).",
            )
        refusal = self._reception.refusal(call, caller)
        if refusal is not None:
            raise _refusal(codec.decode_error(refusal, pickles=False))

    def _incoming(
        self,
        mfa: Any,  # noqa: ANN401  # of unary_messages
        bearer: Bearer,
        kind: Kind,
        seconds: float | None,
        asked: int,
    ) -> UnaryCall:
        target = _target(mfa)
        if not bearer.token.allows(target[0], target[1]):
            self._refused(bearer, target, "token")
            raise RefusedError(
                "unauthorized",
                f"The token does not allow {target[0]}:{target[1]}: make one that does with"
                " `genrpc token --allow`.",
            )
        try:
            encoding, head, buffers = _arguments(mfa)
            reply_encoding = _reply_encoding(asked, encoding)
        except RefusedError as refused:
            if refused.message is _NO_PICKLE:
                self._refused(bearer, target, "pickle")
            raise
        return UnaryCall(
            target,
            kind,
            encoding,
            reply_encoding,
            None if seconds is None else self._loop.time() + seconds,
            head,
            buffers,
        )

    def _refused(self, bearer: Bearer, target: Target, reason: str) -> None:
        name = ":".join(target[:2])
        self._reception.audit.refused_target(bearer.address, reason, name, identity=bearer.peer)

    # ------------------------------------------------------------ ListFunctions

    async def list_functions(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """List what the bearer may run."""
        asked = messages.parse(pb.ListFunctionsRequest, request)
        if asked.page_size < 0:
            raise RefusedError("bad_arguments", f"The page_size {asked.page_size} is below 0.")
        module, colon, function = asked.page_token.partition(":")
        if asked.page_token and not colon:
            raise RefusedError("bad_arguments", "The page_token is none that this node gave.")
        page, following = await self.functions(
            bearer.token.allows, asked.prefix, (module, function), asked.page_size
        )
        token = ":".join(following) if following else ""
        response = pb.ListFunctionsResponse(functions=page, next_page_token=token)
        return response.SerializeToString()

    async def functions(
        self,
        allows: Callable[[str, str], bool],
        prefix: str,
        after: catalogue.Name = ("", ""),
        size: int = 0,
    ) -> tuple[list[pb.FunctionInfo], catalogue.Name | None]:
        """Give a page of the catalogue, and the name to go on after; size 0 is the largest."""
        policy = self._reception.executor.policy
        size = min(size or catalogue.MAX_PAGE, catalogue.MAX_PAGE)
        async with self._listing:  # one after the other: it costs a worker, and long for many
            return await self._in_worker(
                lambda: catalogue.page_of(policy, allows, prefix=prefix, after=after, size=size)
            )

    async def all_functions(self, prefix: str) -> list[pb.FunctionInfo]:
        """Give the whole catalogue, for this node itself."""
        found, after = await self.functions(_everything, prefix)
        while after is not None:
            page, after = await self.functions(_everything, prefix, after)
            found += page
        return found

    async def _in_worker(self, function: Callable[[], T]) -> T:
        result: asyncio.Future[T] = self._loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:  # noqa: ANN401
            if result.done():
                return
            if error is None:
                result.set_result(value)
            else:
                result.set_exception(error)

        def work() -> None:
            try:
                value = function()
            except Exception as error:  # whoever waits raises it
                self._loop.call_soon_threadsafe(settle, None, error)
            else:
                self._loop.call_soon_threadsafe(settle, value, None)

        self._reception.executor.put(work)
        return await result

    # ------------------------------------------------------------ GetStatus

    async def get_status(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Tell who the node is and how it is doing."""
        messages.parse(pb.GetStatusRequest, request)
        return self.status().SerializeToString()

    def status(self) -> pb.GetStatusResponse:
        """Who the node is and how it is doing."""
        reception = self._reception
        busy = reception.executor.statistics()
        status = pb.GetStatusResponse(
            node=reception.node,
            instance_id=reception.instance_id,
            genrpc_version=_version(),
            python_version=platform.python_version(),
            peers=sum(bool(each.session.peer) for each in reception.streams),
            calls_running=busy["running"],
            calls_queued=busy["queued"],
            calls_total=_outcomes(reception.counters.snapshot()),
            limits={
                name: value
                for name, value in reception.settings.limits().items()
                if value is not None
            },
        )
        status.uptime.FromNanoseconds(int((self._loop.time() - self._started_at) * 1e9))
        return status


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return importlib.metadata.version("genrpc")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _outcomes(counters: dict[str, int]) -> dict[str, int]:
    """Pick what became of calls that came in: refused_overload → overload."""
    found = {"served": counters.get("calls_served", 0)}
    for name, number in counters.items():
        if name.startswith("refused_"):
            found[name.removeprefix("refused_")] = number
    return found


def _everything(module: str, function: str) -> bool:
    return True


# ---------------------------------------------------------------- requests


def _target(mfa: Any) -> Target:  # noqa: ANN401  # of unary_messages
    module = (mfa.module, mfa.module_version) if mfa.module_version else mfa.module
    try:
        return check_target(module, mfa.function)
    except ValueError as error:
        raise RefusedError("bad_arguments", f"The mfa names no function: {error}.") from None


def _arguments(mfa: Any) -> tuple[int, bytes, list[bytes]]:  # noqa: ANN401  # of unary_messages
    args, terms, encoded, kwargs = map(
        messages.joined, (mfa.args, mfa.terms, mfa.encoded, mfa.kwargs)
    )
    if sum(each is not None for each in (args, terms, encoded)) > 1:
        raise RefusedError("bad_arguments", "The mfa has more than one of args, terms and encoded.")
    if kwargs is not None and (terms is not None or encoded is not None):
        raise RefusedError(
            "bad_arguments", "kwargs go with args only: terms and encoded have their own."
        )
    if terms is not None:
        return neutral.TERMS, terms, []
    if encoded is not None:
        return _encoded(messages.parse(messages.Encoded, encoded))
    return neutral.VALUES, args or b"", [] if kwargs is None else [kwargs]


def _encoded(encoded: Any) -> tuple[int, bytes, list[bytes]]:  # noqa: ANN401  # of unary_messages
    number = neutral.encoding_of(encoded.content_type)
    if number is None:
        if encoded.content_type.strip().lower().startswith(PICKLE):
            raise RefusedError("bad_arguments", _NO_PICKLE)
        known = ", ".join(neutral.CONTENT_TYPES.values())
        raise RefusedError(
            "bad_arguments", f"The content type {encoded.content_type!r:.100} is none of {known}."
        )
    _check_able(number)
    if encoded.buffers:
        raise RefusedError("bad_arguments", "Only a pickle has buffers beside its data.")
    return number, encoded.data, []


def _reply_encoding(asked: int, encoding: int) -> int:
    if asked == pb.REPLY_ENCODING_UNSPECIFIED:
        return encoding
    if asked == pb.REPLY_ENCODING_PICKLE:
        raise RefusedError("bad_arguments", _NO_PICKLE)
    number = _REPLIES.get(asked)
    if number is None:
        raise RefusedError("bad_arguments", f"This node knows no reply encoding {asked}.")
    _check_able(number)
    return number


def _check_able(encoding: int) -> None:
    fault = neutral.fault_of(encoding)
    if fault is not None:
        raise RefusedError("bad_arguments", fault)


# ---------------------------------------------------------------- answers


def _refusal(failure: BadRPC) -> RefusedError:
    return RefusedError(str(failure.reason), message_of(failure))


def _put_result(result: Any, encoding: int, data: bytes) -> None:  # noqa: ANN401  # of unary_messages
    if encoding == neutral.VALUES:
        result.value = data
    elif encoding == neutral.TERMS:
        result.term = data
    else:
        result.encoded.content_type = neutral.CONTENT_TYPES[encoding]
        result.encoded.data = data


class _Answered:
    """The sink of a call: somebody waits, or did until a moment ago."""

    def __init__(self, reception: Reception, caller: Caller) -> None:
        self.reply: asyncio.Future[Reply] = reception.loop.create_future()
        self._reception = reception
        self._caller = caller

    def post(self, item: Reply) -> None:
        """Take the outcome; from any thread."""
        self._reception.loop.call_soon_threadsafe(self._arrived, item)

    def _arrived(self, item: Reply) -> None:
        call, outcome, head, _ = item
        self._reception.ended([(call, outcome, head, ())], self._caller)
        if not self.reply.done():
            self.reply.set_result(item)


class _CastOver:
    """The sink of a cast: nobody waits, so a failure goes to the log."""

    def __init__(self, reception: Reception, caller: Caller, casts_of: Counter[str]) -> None:
        self._reception = reception
        self._caller = caller
        self._casts_of = casts_of

    def post(self, item: Reply) -> None:
        """Take the outcome; from any thread."""
        self._reception.loop.call_soon_threadsafe(self._arrived, item)

    def _arrived(self, item: Reply) -> None:
        call, outcome, head, _ = item
        self._reception.ended([(call, outcome, head, ())], self._caller)
        peer = self._caller.peer
        self._casts_of[peer] -= 1
        if not self._casts_of[peer]:
            del self._casts_of[peer]
        if outcome != ERROR:
            return
        failure = codec.decode_error(head, pickles=False)
        if failure.execution != "finished":  # what the function raised, the executor has logged
            self._reception.log.warning(
                (peer, call.target),
                "A cast of %s:%s by %s was lost: %s",
                *call.target[:2],
                peer,
                message_of(failure),
            )


# ---------------------------------------------------------------- idempotency keys


@dataclass(slots=True)
class _Repeat:
    digest: bytes
    task: asyncio.Task[bytes]
    size: int = 0


class _Repeats:
    """Answers by their keys, so that a call that comes again does not run again.

    A call under a key goes on when its caller hangs up: whoever asks again gets its outcome. What
    never ran is forgotten at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._kept: OrderedDict[tuple[str, str], _Repeat] = OrderedDict()
        self._bytes = 0

    async def once(
        self, key: tuple[str, str], digest: bytes, run: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Run, or give the answer of an equal request under this key."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = _Repeat(digest, self._loop.create_task(_awaited(run)))
            found.task.add_done_callback(lambda task: self._ended(key, task))
        elif found.digest != digest:
            raise RefusedError(
                "bad_arguments", "The idempotency_key was used for another request already."
            )
        return await asyncio.shield(found.task)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[bytes]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._kept.pop(key, None)
            return
        found = self._kept[key]
        found.size = len(task.result())
        self._bytes += found.size
        self._loop.call_later(REPEAT_SECONDS, self._forget, key, found)
        while len(self._kept) > MAX_REPEATS or self._bytes > MAX_REPEAT_BYTES:
            oldest = next((each for each in self._kept.items() if each[1].task.done()), None)
            if oldest is None:
                break
            self._forget(*oldest)

    def _forget(self, key: tuple[str, str], repeat: _Repeat) -> None:
        if self._kept.get(key) is repeat:
            del self._kept[key]
            self._bytes -= repeat.size


async def _awaited(run: Callable[[], Awaitable[bytes]]) -> bytes:
    return await run()
