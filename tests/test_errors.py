"""Failures as values and as exceptions, and the way between the two."""

import concurrent.futures
import copy
import dataclasses
import pickle
import traceback

import pytest

from genrpc import errors
from genrpc.errors import BadRPC, BadTCP, CallError, Ok, RemoteError, RemoteExit, Throw, error_of

TRACEBACK = 'Traceback (most recent call last):\n  File "there.py", line 1, in divide\n'

WORDS = {
    "timeout": errors.CallTimeoutError,
    "unauthorized": errors.NotAllowedError,
    "incompatible": errors.IncompatibleError,
    "invalid_cookie": errors.NotAllowedError,
    "badnode": errors.NotAllowedError,
    "killed": errors.WorkerKilledError,
    "overload": errors.OverloadError,
    "too_large": errors.TooLargeError,
    "draining": errors.DrainingError,
    "expired": errors.ExpiredError,
    "bad_arguments": errors.BadArgumentsError,
    "bad_result": errors.BadResultError,
}
TRANSPORT_WORDS = [
    *("econnrefused", "nxdomain", "ehostunreach", "enetunreach", "connect_timeout"),
    *("closed", "send_timeout", "tls", "corrupt_data"),
]


def division_by_zero() -> RemoteExit:
    return RemoteExit(
        "builtins.ZeroDivisionError",
        "division by zero",
        TRACEBACK,
        ZeroDivisionError("division by zero"),
    )


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("kind", [BadRPC, BadTCP])
def test_values_are_equal_by_reason_alone(kind):
    assert kind("closed", "started", "said here") == kind("closed")
    assert hash(kind("closed", "started")) == hash(kind("closed"))
    assert kind("closed") != kind("timeout")
    assert BadRPC("closed") != BadTCP("closed")


@pytest.mark.parametrize("kind", [BadRPC, BadTCP])
def test_values_are_frozen_truthy_and_no_exceptions(kind):
    value = kind("closed")
    assert value
    assert not isinstance(value, BaseException)
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.reason = "other"


def test_values_can_be_matched():
    match BadRPC("timeout", "started"):
        case BadRPC("timeout"):
            pass
        case _:
            pytest.fail("BadRPC('timeout') did not match")


@pytest.mark.parametrize("value", [BadRPC("timeout", "started", "m"), BadTCP("tls", "unknown")])
def test_values_are_pickled_whole(value):
    loaded = pickle.loads(pickle.dumps(value))
    assert loaded == value
    assert (loaded.execution, loaded.message) == (value.execution, value.message)


def test_remote_exits_are_equal_by_type_and_message():
    plain = RemoteExit("builtins.ZeroDivisionError", "division by zero")
    assert plain == division_by_zero()
    assert hash(plain) == hash(division_by_zero())
    assert plain != RemoteExit("builtins.ValueError", "division by zero")


def test_remote_exit_shows_the_remote_traceback():
    text = str(division_by_zero())
    assert text.startswith("builtins.ZeroDivisionError: division by zero\n")
    assert '    File "there.py", line 1, in divide' in text


def test_remote_exit_without_message_or_traceback_is_its_type():
    assert str(RemoteExit("builtins.KeyError", "")) == "builtins.KeyError"


# ---------------------------------------------------------------- value → exception → value


@pytest.mark.parametrize("reason", WORDS)
def test_each_word_has_its_class(reason):
    value = BadRPC(reason, "not_started", "what happened")
    error = error_of(value)
    assert type(error) is WORDS[reason]
    assert error.value == value
    assert (error.value.execution, str(error)) == ("not_started", "what happened")


@pytest.mark.parametrize("reason", TRANSPORT_WORDS)
def test_transport_failures_are_connection_errors(reason):
    error = error_of(BadTCP(reason, "not_started"))
    assert type(error) is errors.TransportError
    assert isinstance(error, ConnectionError)
    assert error.value == BadTCP(reason)


@pytest.mark.parametrize("reason", ["word of a later version", ("a", 1), ["unhashable"], 7])
def test_unknown_reason_is_a_plain_call_error(reason):
    error = error_of(BadRPC(reason))
    assert type(error) is CallError
    assert error.value == BadRPC(reason)
    assert repr(reason) in str(error)


def test_timeout_is_a_builtin_timeout_error():
    assert isinstance(error_of(BadRPC("timeout")), TimeoutError)


def test_cancelled_is_that_of_futures():
    error = error_of(BadRPC("cancelled"))
    assert type(error) is concurrent.futures.CancelledError


def test_each_exception_is_a_new_one():
    value = BadRPC("timeout")
    assert error_of(value) is not error_of(value)


def test_remote_error_has_the_exception_as_cause():
    exit_ = division_by_zero()
    error = error_of(BadRPC(exit_, "finished"))
    assert isinstance(error, RemoteError)
    assert error.exit is exit_
    assert error.__cause__ is exit_.exception
    assert error.value == BadRPC(exit_)
    assert error.value.execution == "finished"


def test_printed_remote_error_shows_the_remote_traceback():
    error = error_of(BadRPC(division_by_zero()))
    assert isinstance(error, RemoteError)
    assert str(error).startswith("builtins.ZeroDivisionError: division by zero\n")
    printed = "".join(traceback.format_exception(error))
    assert "there.py" in printed
    assert "direct cause" in printed


def test_remote_error_without_exception_has_no_cause():
    error = error_of(BadRPC(RemoteExit("lost.Error", "gone")))
    assert error.__cause__ is None
    assert str(error) == "lost.Error: gone"


# ---------------------------------------------------------------- pickles


class UsersError(errors.OverloadError, LookupError):
    """A subclass with a constructor of its own and a further base."""

    def __init__(self, node: str) -> None:
        super().__init__(f"{node} is busy", reason="overload", execution="not_started")
        self.node = node


@pytest.mark.parametrize("carry", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
@pytest.mark.parametrize(
    "error",
    [
        CallError("m", reason=("a", 1), execution="started"),
        errors.TransportError("m", reason="closed", execution="unknown"),
        errors.CallTimeoutError(reason="timeout", execution="started"),
        errors.NotAllowedError(reason="badnode", execution="not_started"),
        UsersError("a@127.0.0.1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickled_exceptions_keep_everything(error, carry):
    error.note = "added by hand"
    loaded = carry(error)
    assert type(loaded) is type(error)
    assert loaded.__dict__ == error.__dict__
    assert (str(loaded), loaded.args) == (str(error), error.args)
    assert loaded.value.execution == error.value.execution


def test_pickled_remote_error_keeps_its_cause():
    loaded = pickle.loads(pickle.dumps(error_of(BadRPC(division_by_zero(), "finished"))))
    assert loaded.exit == division_by_zero()
    assert loaded.exit.traceback == TRACEBACK
    assert type(loaded.__cause__) is ZeroDivisionError
    assert loaded.execution == "finished"


def test_throw_keeps_its_value_in_a_pickle():
    assert pickle.loads(pickle.dumps(Throw({"a": 1}))).value == {"a": 1}


def test_ok_is_no_failure_in_disguise():
    assert Ok(BadRPC("timeout")).value == BadRPC("timeout")
    assert Ok(1) != 1


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("reason", [*WORDS, "cancelled"])
def test_every_word_has_a_sentence(reason):
    sentence = errors.message_of(BadRPC(reason))
    assert sentence.endswith(".")
    assert sentence != f"The call failed: {reason!r}."


@pytest.mark.parametrize("reason", TRANSPORT_WORDS)
def test_every_transport_word_has_a_sentence(reason):
    sentence = errors.message_of(BadTCP(reason))
    assert sentence.endswith(".")
    assert sentence != f"The call failed: {reason!r}."


def test_own_message_goes_before_the_sentence():
    assert errors.message_of(BadTCP("closed", message="kicked out")) == "kicked out"


def test_message_of_a_remote_exit_is_its_headline():
    message = errors.message_of(BadRPC(division_by_zero()))
    assert message == "builtins.ZeroDivisionError: division by zero"


def test_unsafe_configuration_is_a_configuration_error():
    assert issubclass(errors.UnsafeConfigurationError, errors.ConfigurationError)
    assert issubclass(errors.ConfigurationError, ValueError)
