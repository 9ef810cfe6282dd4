"""Failures to the bytes of a `genrpc.v1.RpcError` and back.

An exception travels twice: readable (type, text, traceback, causes), which always works, and
pickled, which may not. The pickle holds class, args, state and the attributes that builtin
bases keep in C, and is put together without `__init__`, `__reduce__` or a `__new__` of its own,
so that classes with awkward constructors arrive as well. Exceptions inside (in `args`, attributes
and groups) travel likewise.

Rules: nothing here raises but `ValueError` for a reason word that does not exist, and Ctrl-C in
the main thread. `encode_exception` and `decode_error` run users' code (`__str__`, attributes), so
a worker or the caller's thread calls them; `encode_error` runs none and may be called anywhere.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import os
import pickle
import traceback
import types
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.codec import rebuild
from genrpc.codec.by_value import Reducer
from genrpc.codec.payload import Unpickle, class_name, decode_value, is_interrupt
from genrpc.errors import BadRPC, CodecError, Execution, RemoteExit

#: Texts of an exception are cut to these many bytes.
MAX_TEXT_BYTES = 65_536
MAX_TRACEBACK_BYTES = 131_072
#: A pickled exception over this is left out.
MAX_ENCODED_BYTES = 1_048_576
MAX_CAUSES = 8
PICKLE = "application/x-python-pickle"

_MAX_FRAMES = 2_000  # of one traceback; twice the default recursion limit
_MAX_GROUP = 15  # members of an exception group that are shown, as Python does

_REASONS: dict[str, pb.ErrorReason.ValueType] = {
    "exit": pb.ERROR_REASON_EXIT,
    "undef": pb.ERROR_REASON_UNDEF,
    "unauthorized": pb.ERROR_REASON_UNAUTHORIZED,
    "incompatible": pb.ERROR_REASON_INCOMPATIBLE,
    "timeout": pb.ERROR_REASON_TIMEOUT,
    "cancelled": pb.ERROR_REASON_CANCELLED,
    "overload": pb.ERROR_REASON_OVERLOAD,
    "draining": pb.ERROR_REASON_DRAINING,
    "bad_arguments": pb.ERROR_REASON_BAD_ARGUMENTS,
    "bad_result": pb.ERROR_REASON_BAD_RESULT,
    "too_large": pb.ERROR_REASON_TOO_LARGE,
    "killed": pb.ERROR_REASON_KILLED,
    "invalid_cookie": pb.ERROR_REASON_INVALID_COOKIE,
    "badnode": pb.ERROR_REASON_BAD_NODE,
}
_REASON_WORDS = {number: word for word, number in _REASONS.items()}
_EXITS = (pb.ERROR_REASON_EXIT, pb.ERROR_REASON_UNDEF)

_EXECUTIONS: dict[Execution, pb.Execution.ValueType] = {
    "unknown": pb.EXECUTION_UNSPECIFIED,
    "not_started": pb.EXECUTION_NOT_STARTED,
    "started": pb.EXECUTION_STARTED,
    "finished": pb.EXECUTION_FINISHED,
}
_EXECUTION_WORDS = {number: word for word, number in _EXECUTIONS.items()}


# ---------------------------------------------------------------- encoding


def encode_error(reason: str, execution: Execution, message: str = "") -> bytes:
    """Encode a failure other than an exception of the function."""
    if reason not in _REASONS:
        raise ValueError(f"{reason!r} is no reason of an RpcError: use one of {sorted(_REASONS)}")
    return pb.RpcError(
        reason=_REASONS[reason], execution=_EXECUTIONS[execution], message=_cut(message)
    ).SerializeToString()


def encode_exception(
    exc: BaseException,
    *,
    execution: Execution,
    reason: str = "exit",
    tracebacks: bool = True,
    pickles: bool = True,
) -> bytes:
    """Encode what a function raised; "undef" is the reason where there was no function.

    Frames of genrpc and importlib above the function are left out, and all frames without
    `tracebacks`. Without `pickles` only the readable part goes, as it does wherever the exception
    cannot be pickled.
    """
    chain = list(itertools.islice(_chain(exc), MAX_CAUSES + 1))
    readable = [
        pb.RemoteException(type=class_name(type(each)), message=_text(each)) for each, _ in chain
    ]
    if tracebacks:
        for place, shown in enumerate(readable):
            # The whole story stands in the first one only: it is what people read.
            part = chain if place == 0 else chain[place : place + 1]
            shown.traceback = _traceback(part)
    first = readable[0]
    first.causes.extend(readable[1:])
    encoded = _pickled(exc) if pickles else None
    if encoded is not None:
        first.encoded.content_type = PICKLE
        first.encoded.data = encoded
    headline = f"{first.type}: {first.message}" if first.message else first.type
    return pb.RpcError(
        reason=_REASONS[reason],
        execution=_EXECUTIONS[execution],
        message=_cut(headline.partition("\n")[0], 1_024),
        exception=first,
    ).SerializeToString()


def _chain(exc: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Give `exc` and what led to it, each once, with the sentence that leads to the next."""
    seen: set[int] = set()
    each: BaseException | None = exc
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        # Not each.__cause__: a class may have made a property of it.
        cause = _CAUSE.__get__(each)
        if cause is None and not _SUPPRESSED.__get__(each):
            yield each, _DURING
            each = _CONTEXT.__get__(each)
        else:
            yield each, _BECAUSE
            each = cause


_CAUSE = vars(BaseException)["__cause__"]
_CONTEXT = vars(BaseException)["__context__"]
_SUPPRESSED = vars(BaseException)["__suppress_context__"]
_TRACEBACK = vars(BaseException)["__traceback__"]
_ARGS = vars(BaseException)["args"]

# Python's own words.
_BECAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _text(exc: BaseException) -> str:
    try:
        return _cut(str(exc))
    except BaseException as error:
        if is_interrupt(error):
            raise
        return f"<unprintable {type.__getattribute__(type(exc), '__name__')} object>"


def _cut(text: str, limit: int = MAX_TEXT_BYTES) -> str:
    """Make of any text one that protobuf takes, of about `limit` bytes at most."""
    # str.encode: what __str__ returned may be of a class of its own. Lone surrogates have no
    # UTF-8. One character has up to four bytes, so the second cut is needed as well.
    data = str.encode(text[: limit + 1], "utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    kept = data[:limit].decode("utf-8", "ignore")
    return f"{kept}… [cut: {len(text):,} characters in all]"


# ---------------------------------------------------------------- tracebacks

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_LEADING = (
    _OURS,
    os.path.join(os.path.dirname(os.path.abspath(importlib.__file__)), ""),
    "<frozen importlib",
)


def _traceback(chain: list[tuple[BaseException, str]]) -> str:
    blocks = []
    for place, (exc, _) in enumerate(chain):
        link = chain[place][1] if place + 1 < len(chain) else ""
        blocks.append(link + "".join(_block(exc, levels=3)))
    data = "".join(reversed(blocks)).encode("utf-8", "backslashreplace")
    if len(data) > MAX_TRACEBACK_BYTES:
        # Both ends matter: what was called, and what it came to.
        half = MAX_TRACEBACK_BYTES // 2
        data = data[:half] + f"\n… [cut: {len(data):,} bytes in all] …\n".encode() + data[-half:]
    return data.decode("utf-8", "ignore")


def _block(exc: BaseException, levels: int) -> list[str]:
    """Format one exception as Python does, without what led to it."""
    lines = []
    try:
        frames = list(_frames(exc))
        if frames:
            lines.append("Traceback (most recent call last):\n")
        if len(frames) > _MAX_FRAMES:
            half = _MAX_FRAMES // 2
            lines += traceback.StackSummary.extract(iter(frames[:half])).format()
            lines.append(f"  … {len(frames) - 2 * half:,} frames left out …\n")
            frames = frames[-half:]
        lines += traceback.StackSummary.extract(iter(frames)).format()
    except BaseException as error:  # reading source lines may run a loader's code
        if is_interrupt(error):
            raise
    lines += _last_lines(exc)
    return lines + _members(exc, levels)


def _frames(exc: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    """Give the frames from the first on that is neither genrpc's nor importlib's."""
    return itertools.dropwhile(
        lambda frame: frame[0].f_code.co_filename.startswith(_LEADING),
        traceback.walk_tb(_TRACEBACK.__get__(exc)),
    )


def _last_lines(exc: BaseException) -> Iterator[str]:
    if isinstance(exc, SyntaxError) and isinstance(exc.filename, str):
        yield f'  File "{exc.filename}", line {exc.lineno}\n'
        yield f"    {str(exc.text or '').strip()}\n"
    name = class_name(type(exc)).removeprefix("builtins.")
    text = _cut(_text(exc), 4_096)
    yield f"{name}: {text}\n" if text else f"{name}\n"
    notes = _state(exc).get("__notes__")
    if isinstance(notes, list):
        for note in notes:
            if isinstance(note, str):
                yield f"{_cut(note, 4_096)}\n"


def _members(exc: BaseException, levels: int) -> list[str]:
    """Format what is in an exception group, indented."""
    group = getattr(builtins, "BaseExceptionGroup", None)  # Python 3.11
    if group is None or not isinstance(exc, group):
        return []
    # Not exc.exceptions: see _chain.
    members = vars(group)["exceptions"].__get__(exc)
    lines = []
    for number, member in enumerate(members[:_MAX_GROUP] if levels else (), 1):
        lines.append(f"  +---------------- {number} ----------------\n")
        text = "".join(_block(member, levels - 1))
        lines += [f"  | {line}\n" for line in text.splitlines()]
    if len(members) > _MAX_GROUP or not levels:
        lines.append(f"  +---------------- of {len(members)} in all\n")
    return lines


# ---------------------------------------------------------------- the exception itself


def _pickled(exc: BaseException) -> bytes | None:
    try:
        return _dump(exc, keep_all=True)
    except BaseException as error:
        if is_interrupt(error):
            raise
    try:
        return _dump(exc, keep_all=False)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return None


def _dump(value: object, keep_all: bool) -> bytes:
    file = _BoundedFile()
    _ExceptionPickler(file, keep_all).dump(value)
    return b"".join(file.pieces)


class _BoundedFile:
    """Takes the pickle until it is too large."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._left = MAX_ENCODED_BYTES

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OverflowError("the pickled exception is too large")
        self.pieces.append(bytes(data))
        return len(data)


class _ExceptionPickler(pickle.Pickler):
    """Pickles exceptions in this module's way, and all else as arguments are."""

    def __init__(self, file: _BoundedFile, keep_all: bool) -> None:
        super().__init__(file, 5)
        self._reducer = Reducer(frozenset())
        self._keep_all = keep_all

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401  # as in typeshed
        if not isinstance(obj, BaseException):
            return self._reducer.reduce(obj)
        state, details = dict(_state(obj)), _details(obj)
        if not self._keep_all:
            state, details = _encodable(state), _encodable(details)
        arguments = (type(obj), _ARGS.__get__(obj))
        return (
            rebuild.make_exception,
            arguments,
            (state, details),
            None,
            None,
            rebuild.fill_exception,
        )


def _encodable(values: dict[str, object]) -> dict[str, object]:
    kept = {}
    for name, value in values.items():
        try:
            _dump(value, keep_all=True)
        except BaseException as error:
            if is_interrupt(error):
                raise
            continue
        kept[name] = value
    return kept


def _state(exc: BaseException) -> dict[str, object]:
    state: dict[str, object] = rebuild.STATE.__get__(exc)
    return state


#: What is set otherwise, or is no part of the exception: AttributeError.obj may be anything.
_NO_DETAILS = frozenset(vars(BaseException)) | {"obj", "__weakref__"}


def _details(exc: BaseException) -> dict[str, object]:
    """Collect what is in slots and in the C part of builtin bases: errno, code, start, …."""
    details: dict[str, object] = {}
    for cls in type(exc).__mro__:
        for name, attribute in vars(cls).items():
            kinds = (types.MemberDescriptorType, types.GetSetDescriptorType)
            if type(attribute) not in kinds or name in _NO_DETAILS:
                continue
            try:
                value = attribute.__get__(exc)
            except AttributeError:  # not set
                continue
            if value is not None:
                details.setdefault(name, value)
    return details


# ---------------------------------------------------------------- decoding


def decode_error(
    data: bytes | bytearray, *, unpickle: Unpickle | None = None, pickles: bool = True
) -> BadRPC:
    """Decode an RpcError; what cannot be rebuilt of an exception is None.

    Bytes that are no RpcError give BadRPC("bad_result"); a reason of a later protocol
    gives BadRPC("unknown").
    """
    try:
        error = pb.RpcError.FromString(bytes(data))
    except DecodeError:
        return BadRPC("bad_result", "unknown", "The node's answer is no RpcError: it is broken.")
    execution = _EXECUTION_WORDS.get(error.execution, "unknown")
    if error.reason not in _EXITS:
        return BadRPC(_REASON_WORDS.get(error.reason, "unknown"), execution, error.message)
    shown = error.exception
    exception = None
    if pickles and shown.encoded.content_type == PICKLE:
        exception = _rebuilt(shown.encoded.data, unpickle)
    if error.HasField("exception"):
        reason = RemoteExit(shown.type, shown.message, shown.traceback, exception)
    else:  # a node in another language may have none
        reason = RemoteExit("builtins.Exception", error.message, "", None)
    return BadRPC(reason, execution, error.message)


def _rebuilt(data: bytes, unpickle: Unpickle | None) -> BaseException | None:
    try:
        value = decode_value(data, unpickle=unpickle)
    except CodecError:
        return None
    return value if isinstance(value, BaseException) else None
