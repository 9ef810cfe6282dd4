"""Values to payload bytes and back.

A payload is a head, which is a pickle of protocol 5, and its out-of-band buffers. Buffers of at
least 64 KiB stay out of the head: arrays and all else that supports `pickle.PickleBuffer`, and
large bytes, bytearrays and memoryviews that a cheap look finds (see `_Lifting`). In band, 10 MB
would hold the GIL for milliseconds at each end.

What pickle refuses, and what it would write as a name in `__main__`, is written by value.

Failures: whatever a value's own methods raise while they are encoded or decoded becomes a
`CodecError`, `SystemExit` and the like too, for they are the value's doing. The one exception is
`KeyboardInterrupt` in the main thread, the only thread that Ctrl-C reaches: it goes on.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from genrpc.codec import by_value as values_by_value
from genrpc.codec import rebuild
from genrpc.errors import CodecError

Buffer = bytes | bytearray | memoryview
Payload = tuple[bytes, Sequence[Buffer]]
#: Decodes a pickle that may not reach everything: `unpickle(head, buffers, builders=…)`, where
#: `builders` are our own functions, by name, that it may call besides. Raises what it likes.
Unpickle = Callable[..., object]

#: Bytes from which on a buffer travels beside the pickle: as long as a small payload may be.
OUT_OF_BAND_BYTES = 65_536

_NOTHING: frozenset[str] = frozenset()
_STACK_GLOBAL = 0x93  # pickle's opcode for a name; looking for a byte is cheaper than for a text
_ADVICE = "pass plain data, or objects whose class both nodes can import"


# ---------------------------------------------------------------- encoding


def encode_arguments(
    args: Sequence[object],
    kwargs: Mapping[str, object] | None = None,
    *,
    snapshot: bool,
    by_value: frozenset[str] = _NOTHING,
) -> Payload:
    """Encode the arguments of a call.

    With `snapshot`, later changes to the arguments do not reach the payload: writable buffers are
    copied. Without it they are shared, and the caller must let them be until the call has ended.
    What the modules in `by_value` define is written by value, although it can be imported here.
    Raises CodecError, which names the argument; then nothing is to be sent.
    """
    positional = args if type(args) is tuple else tuple(args)
    root = (positional, dict(kwargs) if kwargs else None)
    if not kwargs:
        # Numbers and texts alone have no buffers and no failures: measured, this way costs 0.5 µs
        # beyond pickle.dumps, the other 1.5 µs.
        for value in positional:
            if type(value) not in _SCALARS:
                break
        else:
            return pickle.dumps(root, 5), ()
    try:
        outermost = positional if root[1] is None else (*positional, root[1])
        # Two levels more: the pair and its halves are ours.
        return _encode(root, outermost, _LEVELS + 2, snapshot, by_value)
    except BaseException as error:
        _raise_unless_interrupt(error, lambda: _blame(root, by_value))


def encode_value(value: object, *, snapshot: bool, by_value: frozenset[str] = _NOTHING) -> Payload:
    """Encode a result or a thrown value; see encode_arguments.

    Raises CodecError, which names the type.
    """
    if type(value) in _SCALARS:
        return pickle.dumps(value, 5), ()
    try:
        return _encode(value, (value,), _LEVELS, snapshot, by_value)
    except BaseException as error:
        what = f"a value of type {type_name(value)}"
        _raise_unless_interrupt(error, lambda: what)


def is_writable(buffer: Buffer) -> bool:
    """Whether the receiver must put this part into a bytearray; else into bytes."""
    return type(buffer) is not bytes and not memoryview(buffer).readonly


def _encode(
    root: object,
    outermost: Iterable[object],
    levels: int,
    snapshot: bool,
    by_value: frozenset[str],
) -> Payload:
    # The whole look costs 4 µs and more, so it is for what is large: what seems to be at a glance,
    # and what its pickle shows to be, which then was made in vain.
    glanced = _seems_large(outermost)
    lifted = _lift(root, levels) if glanced else root
    head, buffers = _dumps(lifted, by_value)
    if not glanced and len(head) >= OUT_OF_BAND_BYTES:
        lifted = _lift(root, levels)
        if lifted is not root:
            head, buffers = _dumps(lifted, by_value)
    if buffers:
        return head, [_part(buffer, snapshot) for buffer in buffers]
    return head, ()


class _Buffers(list[pickle.PickleBuffer]):
    """Collects the buffers that go out of band."""

    __slots__ = ()

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        if memoryview(buffer).nbytes < OUT_OF_BAND_BYTES:
            return True  # means: in band
        self.append(buffer)
        return False


def _dumps(root: object, by_value: frozenset[str]) -> tuple[bytes, _Buffers]:
    if not by_value:
        buffers = _Buffers()
        try:
            head = pickle.dumps(root, 5, buffer_callback=buffers)
        except values_by_value.REFUSALS:
            pass
        else:
            if _STACK_GLOBAL not in head or b"__main__" not in head:
                return head, buffers
    return values_by_value.dumps(root, by_value, _Buffers)


def _part(buffer: pickle.PickleBuffer, snapshot: bool) -> Buffer:
    """Make a part of the payload of a buffer; immutable bytes are never copied."""
    view = buffer.raw()
    whole = memoryview(buffer).obj
    if type(whole) is bytes and len(whole) == view.nbytes:
        return whole
    if not snapshot:
        return view
    # A view that may not be written through may still look at what others write to.
    return bytes(view) if view.readonly else bytearray(view)


_SCALARS = frozenset({int, str, float, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, dict})
#: How deep below an argument or a result large bytes are looked for.
_LEVELS = 3
_BLOBS = frozenset({bytes, bytearray, memoryview})
_LOOKED_AT = _CONTAINERS | _BLOBS


def _seems_large(values: Iterable[object]) -> bool:
    """Whether there are large bytes among the values, or just inside the short ones of them."""
    for value in values:
        kind = type(value)
        if kind in _BLOBS:
            if len(value) >= OUT_OF_BAND_BYTES:  # type: ignore[arg-type]  # kind says so
                return True
        elif kind in _CONTAINERS and len(value) <= 16:  # type: ignore[arg-type]  # as above
            inside: Any = value.values() if kind is dict else value  # type: ignore[attr-defined]
            for item in inside:
                if type(item) in _BLOBS and len(item) >= OUT_OF_BAND_BYTES:
                    return True
    return False


def _lift(root: object, levels: int) -> object:
    """Give `root` with PickleBuffers in place of its large bytes, or `root` itself."""
    try:
        return _Lifting().look(root, levels)
    except _CycleError:
        return root


class _Lifting:
    """One look for large bytes, bytearrays and memoryviews, which are to travel out of band.

    It looks into lists, tuples and dicts of exactly these types, some levels deep, until it has
    seen 1,000 elements. Containers on the way to something found are copied, never changed; two
    references to one container stay two references to its copy.
    """

    def __init__(self) -> None:
        self._left = 1_000
        self._seen: dict[int, object] = {}

    def look(self, value: object, depth: int) -> object:
        """Give what to pickle in place of `value`; raises _CycleError where nothing can be."""
        if type(value) not in _LOOKED_AT:
            return value
        if isinstance(value, memoryview):
            return values_by_value.immutable(value)
        if isinstance(value, bytes | bytearray):
            return pickle.PickleBuffer(value) if len(value) >= OUT_OF_BAND_BYTES else value
        if not depth:
            return value
        key = id(value)
        result = self._seen.get(key)
        if result is None:
            self._seen[key] = _UNDER_WAY
            result = self._seen[key] = self._look_into(value, depth)
        elif result is _UNDER_WAY:
            raise _CycleError
        return result

    def _look_into(self, container: object, depth: int) -> object:
        if isinstance(container, dict):
            changed = self._changes(container.items(), depth - 1)
            return {**container, **changed} if changed else container
        assert isinstance(container, list | tuple)
        changed = self._changes(enumerate(container), depth - 1)
        if not changed:
            return container
        items = list(container)
        for index, item in changed.items():
            items[index] = item
        return items if isinstance(container, list) else tuple(items)

    def _changes(self, items: Iterable[tuple[Any, object]], depth: int) -> dict[Any, object]:
        changed: dict[Any, object] = {}
        for key, item in items:
            if not self._left:
                break
            self._left -= 1
            if type(item) in _LOOKED_AT:
                lifted = self.look(item, depth)
                if lifted is not item:
                    changed[key] = lifted
        return changed


_UNDER_WAY = object()


class _CycleError(Exception):
    """A container contains itself: a copy of it could not."""


# ---------------------------------------------------------------- decoding


def decode_arguments(
    head: bytes | bytearray,
    buffers: Sequence[Buffer] = (),
    *,
    unpickle: Unpickle | None = None,
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Decode the arguments of a call; the buffers become part of them.

    With `unpickle`, that decides what can be reached. Raises
    CodecError for whatever goes wrong.
    """
    try:
        decoded: Any
        if unpickle is None and not buffers and _STACK_GLOBAL not in head:
            decoded = pickle.loads(head)  # the same as below, 0.3 µs sooner
        else:
            decoded = _loads(head, buffers, unpickle)
        # Something else than a pair is a TypeError or a ValueError, and ends below as well.
        positional, keywords = decoded
        return tuple(positional), {} if keywords is None else _keywords(keywords)
    except BaseException as error:
        _raise_unless_interrupt(error, lambda: "the arguments", "decode")


def decode_value(
    head: bytes | bytearray,
    buffers: Sequence[Buffer] = (),
    *,
    unpickle: Unpickle | None = None,
) -> object:
    """Decode a result or a thrown value; see decode_arguments."""
    try:
        if unpickle is None and not buffers and _STACK_GLOBAL not in head:
            return pickle.loads(head)  # the same as below, sooner
        return _loads(head, buffers, unpickle)
    except BaseException as error:
        _raise_unless_interrupt(error, lambda: "the value", "decode")


def _loads(head: bytes | bytearray, buffers: Sequence[Buffer], unpickle: Unpickle | None) -> object:
    if unpickle is not None:
        return unpickle(head, buffers, builders=_HARMLESS)
    if _STACK_GLOBAL in head and b"dill" in head and "dill" not in sys.modules:
        values_by_value.import_dill()  # before the pickle imports it, with its side effects
    return pickle.loads(head, buffers=buffers)  # the peer was authenticated


# They put exceptions together, running no code of the classes, which must be let in themselves.
_HARMLESS = {
    ("genrpc.codec.rebuild", "make_exception"): rebuild.make_exception,
    ("genrpc.codec.rebuild", "fill_exception"): rebuild.fill_exception,
}


def _keywords(keywords: dict[object, object]) -> dict[str, object]:
    for name in keywords:
        if type(name) is not str:
            raise TypeError(f"the name of a keyword argument is {type_name(name)}, not str")
    return keywords  # type: ignore[return-value]  # just checked


# ---------------------------------------------------------------- failures


def type_name(value: object) -> str:
    """Name the type of `value` in full, whatever its class does to prevent it."""
    return class_name(type(value))


def class_name(cls: type) -> str:
    """Name `cls` in full: "builtins.ValueError", "package.module.Outer.Inner"."""
    try:
        return str.__str__(f"{cls.__module__}.{cls.__qualname__}")
    except BaseException as error:
        if is_interrupt(error):
            raise
        return type.__repr__(cls)


def is_interrupt(error: BaseException) -> bool:
    """Whether `error` is Ctrl-C: it reaches the main thread only, whatever user code raises."""
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def reason_text(error: BaseException) -> str:
    """Say type and text of `error` in at most about 1,000 characters; never raise."""
    try:
        text = str(error)[:1_000]
    except BaseException as unprintable:
        if is_interrupt(unprintable):
            raise
        text = ""
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _raise_unless_interrupt(
    error: BaseException, what: Callable[[], str], verb: str = "encode"
) -> NoReturn:
    if is_interrupt(error):
        raise error
    advice = f"; {_ADVICE}" if verb == "encode" else ""
    raise CodecError(f"cannot {verb} {what()}: {reason_text(error)}{advice}") from error


def _blame(
    root: tuple[tuple[object, ...], dict[str, object] | None], by_value: frozenset[str]
) -> str:
    """Find the argument that cannot be encoded, by encoding each alone."""
    positional, keywords = root
    named = [(f"argument {number}", value) for number, value in enumerate(positional, 1)]
    named += [(f"keyword argument {name!r}", value) for name, value in (keywords or {}).items()]
    # More would make a failure slow that is told to somebody who waits.
    for name, value in named[:100]:
        try:
            _dumps(value, by_value)
        except BaseException as error:
            if is_interrupt(error):
                raise
            return f"{name} of type {type_name(value)}"
    return "the arguments"
