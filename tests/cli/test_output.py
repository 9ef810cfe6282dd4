"""How outcomes are printed, and which exit codes they have."""

import json
import math

import pytest

from genrpc.cli import codes, output
from genrpc.errors import BadRPC, BadTCP, RemoteExit

EXIT = RemoteExit("builtins.ValueError", "no", "Traceback:\n  File x\nValueError: no\n")

CODES = {
    BadRPC(EXIT): 1,
    BadRPC("incompatible"): 3,
    BadRPC("badnode"): 3,
    BadRPC("killed"): 3,
    BadRPC("too_large"): 3,
    BadRPC("bad_arguments"): 3,
    BadRPC("bad_result"): 3,
    BadRPC("something new"): 3,
    BadTCP("econnrefused"): 4,
    BadTCP("closed"): 4,
    BadTCP("connect_timeout"): 4,
    BadRPC("unauthorized"): 5,
    BadRPC("invalid_cookie"): 5,
    BadRPC("overload"): 75,
    BadRPC("draining"): 75,
    BadRPC("timeout"): 124,
    BadRPC("cancelled"): 130,
}


@pytest.mark.parametrize("value", CODES, ids=repr)
def test_each_failure_has_its_exit_code(value):
    assert output.code_of(value) == CODES[value]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain text", "plain text"),
        ("", ""),
        (2.0, "2.0"),
        (None, "null"),
        (True, "true"),
        ([1, "ü"], '[1, "ü"]'),
        ((1, 2), "[1, 2]"),
        (b"raw", "b'raw'"),
        ({1}, "{1}"),
        (math.nan, "nan"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
    ],
)
def test_results_are_text_json_or_repr(value, text):
    assert output.text_of(value) == text


def test_a_result_that_json_cannot_hold_is_marked_as_a_repr():
    assert output.json_of([1]) == {"result": [1]}
    assert output.json_of({1}) == {"result": "{1}", "repr": True}


def test_json_of_a_raised_exception_has_its_traceback():
    error = output.error_json(BadRPC(EXIT, "finished"))["error"]
    assert error == {
        "kind": "badrpc",
        "reason": "exit",
        "message": "builtins.ValueError: no",
        "execution": "finished",
        "exception": {"type": EXIT.type, "message": EXIT.message, "traceback": EXIT.traceback},
    }


def test_json_of_a_transport_failure(capsys):
    code = output.show_failure(BadTCP("closed", "unknown"), "a", as_json=True)
    assert code == codes.BADTCP
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["reason"], error["execution"]) == ("badtcp", "closed", "unknown")
    assert error["message"].startswith("The stream ended")


def test_a_failure_is_text_on_standard_error(capsys):
    assert output.show_failure(BadRPC(EXIT), "a", as_json=False) == codes.RAISED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("genrpc: a: builtins.ValueError: no\n")
    assert "File x" in err


def test_a_traceback_of_one_line_is_not_repeated(capsys):
    exit_ = RemoteExit("builtins.ValueError", "no", "ValueError: no\n")
    output.show_failure(BadRPC(exit_), "a", as_json=False)
    assert capsys.readouterr().err == "genrpc: a: builtins.ValueError: no\n"


def test_a_failure_is_one_line_where_there_is_little_room():
    assert output.headline_of(BadRPC(EXIT)) == "builtins.ValueError: no"
    assert output.headline_of(BadTCP("closed", message="Cut off.")) == "closed: Cut off."
