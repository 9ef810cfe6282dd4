"""What words of the command line mean."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc.cli import arguments, main
from genrpc.cli.arguments import Command, Parser, UsageError, values


@pytest.fixture
def parse():
    def declare(parser):
        parser.add_argument("node")
        parser.add_argument("args", nargs="*")
        parser.add_argument("--kw", action="append", default=[])
        parser.add_argument("-n", type=int)

    return Parser("try", "try it", Command(declare, lambda args: 0)).parse


def test_options_may_stand_anywhere(parse):
    args = parse(["--json", "a", "1", "--kw", "x=1", "2", "-n", "5", "3", "-v"])
    assert (args.node, args.args, args.kw, args.n) == ("a", ["1", "2", "3"], ["x=1"], 5)
    assert args.json
    assert args.verbose == 1


@pytest.mark.parametrize("word", ["-4", "-1.5", "-1e5", "-"])
def test_a_number_below_zero_is_an_argument(parse, word):
    assert parse(["a", word, "--json"]).args == [word]


def test_after_two_dashes_nothing_is_an_option(parse):
    args = parse(["a", "--", "--json", "-x"])
    assert args.args == ["--json", "-x"]
    assert not args.json


def test_the_value_of_an_option_may_begin_with_a_dash(parse):
    assert parse(["a", "--kw", "-x=1"]).kw == ["-x=1"]


@pytest.mark.parametrize("words", [["a", "--jso"], ["a", "-x"], [], ["a", "-n", "x"], ["a", "-n"]])
def test_a_mistake_raises_a_sentence(parse, words):
    with pytest.raises(UsageError, match=r"\w"):
        parse(words)


def test_words_that_are_left_over_are_named(capsys):
    assert main(["cookie", "one", "two"]) == 2
    assert "unrecognized arguments: one two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-2.5", -2.5),
        ('"5"', "5"),
        ("[1, null]", [1, None]),
        ('{"a": true}', {"a": True}),
        ("abc", "abc"),
        ("", ""),
        ("NaN", "NaN"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_an_argument_is_json_if_it_parses_else_text(text, value):
    assert values([text], [f"k={text}"]) == ([value], {"k": value})


@given(st.text())
def test_any_text_is_some_argument(text):
    values([text] if text != "-" else [], [])


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_dash_is_what_standard_input_has(stdin):
    stdin(b"[1,\n 2]\n")
    assert values(["a", "-"], []) == (["a", [1, 2]], {})


def test_text_of_standard_input_loses_its_last_line_end(stdin):
    stdin(b"two\nlines\n")
    assert values([], ["text=-"]) == ([], {"text": "two\nlines"})


def test_standard_input_is_one_argument_only(stdin):
    stdin(b"1")
    with pytest.raises(UsageError, match="one argument only"):
        values(["-", "-"], [])


def test_standard_input_must_be_text(stdin):
    stdin(b"\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        values(["-"], [])


@pytest.mark.parametrize("keywords", [["x"], ["=1"], ["x=1", "x=2"]])
def test_a_keyword_argument_is_name_and_value(keywords):
    with pytest.raises(UsageError, match="--kw"):
        values([], keywords)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("math.sqrt", ("math", "sqrt")),
        ("os.path.join", ("os.path", "join")),
        ("os.path:join", ("os.path", "join")),
        ("pkg.mod:Class.method", ("pkg.mod", "Class.method")),
    ],
)
def test_the_last_dot_or_a_colon_parts_module_and_function(text, target):
    assert arguments.target(text) == target


@pytest.mark.parametrize(
    "words",
    [
        ["call", "a", "sqrt"],
        ["call", "a", "math."],
        ["call", "a", ".sqrt"],
        ["call", "a", "math:a.b.c"],
        ["call", "a", "math sqrt"],
        ["call", "a@", "math.sqrt"],
        ["call", "a:0", "math.sqrt"],
        ["call", "a", "math.sqrt", "--timeout", "5 parsecs"],
        ["call", "a", "math.sqrt", "--timeout=-1"],
        ["call"],
        ["multicall", ",", "math.sqrt"],
        ["multicall", "a,b@", "math.sqrt"],
        ["multicall", "a"],
        ["serve", "--port", "many"],
        ["serve", "--port", "70000"],
        ["serve", "--name", "a@b@c"],
        ["serve", "no module"],
        ["serve", "--grace", "soon"],
        ["bench", "a", "--seconds", "0"],
        ["bench", "a", "--seconds", "none"],
        ["bench", "a", "--seconds", "2h"],
        ["cert", "other"],
        ["cert", "new", "a", "--days", "0"],
        ["cookie", "--path", "--show"],
        ["token", "--ttl", "0"],
        ["ping"],
        ["no-such-command"],
        ["help", "no-such-command"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_usage_ends_with_2_and_a_sentence(capsys, words):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("genrpc: ")
    assert "--help" in err


def test_an_unknown_command_is_told_with_the_nearest(capsys):
    assert main(["mulitcall"]) == 2
    assert "did you mean 'multicall'?" in capsys.readouterr().err


def test_without_a_command_the_help_is_no_result(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "genrpc COMMAND" in err
