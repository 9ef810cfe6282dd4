"""`genrpc proto`."""

import json
import shlex
from importlib import resources

import pytest


def test_proto_prints_the_file_that_is_shipped(cli):
    package = resources.files("genrpc._generated.genrpc.v1")
    text = package.joinpath("genrpc.proto").read_text("utf-8")
    assert cli("proto").stdout == text
    assert json.loads(cli("proto", "--json").stdout)["text"] == text


def test_proto_prints_a_command_for_the_shell(cli, node):
    done = cli("proto", node.dest, "cli_targets.echo", "it's", "--kw", "a=1")
    assert done.returncode == 0
    assert '-H "authorization: Bearer $(genrpc token)"' in done.stdout
    words = shlex.split(done.stdout)
    assert words[:2] == ["grpcurl", "-plaintext"]
    assert words[-2:] == [f"127.0.0.1:{node.event['port']}", "genrpc.v1.NodeService/Call"]
    assert json.loads(words[words.index("-d") + 1]) == {
        "mfa": {
            "module": "cli_targets",
            "function": "echo",
            "args": ["it's"],
            "kwargs": {"a": 1},
        }
    }


@pytest.mark.parametrize(
    ("argument", "term"),
    [
        (str(2**53 + 1), {"int_value": str(2**53 + 1)}),
        (str(-(10**30)), {"big_int_value": str(-(10**30))}),
        ("1e400", {"float_value": "Infinity"}),
    ],
)
def test_proto_writes_what_json_would_change_as_terms(cli, argument, term):
    done = cli("proto", "a@h:1", "cli_targets.echo", argument, "--kw", f"a=[{argument}]", "--json")
    words = json.loads(done.stdout)["argv"]
    mfa = json.loads(words[words.index("-d") + 1])["mfa"]
    assert mfa["terms"] == {"args": [term], "kwargs": {"a": {"list_value": {"items": [term]}}}}
    assert not mfa.keys() & {"args", "kwargs"}


def test_proto_tells_of_arguments_that_no_command_has(cli):
    for argument in ('"\\ud800"', "[" * 60 + "]" * 60):
        done = cli("proto", "a@h:1", "math.sqrt", argument)
        assert done.returncode == 2
        assert "no grpcurl command" in done.stderr


def test_proto_finds_a_node_by_its_name(cli, node):
    words = json.loads(cli("proto", node.name, "math.sqrt", 4, "--json").stdout)["argv"]
    assert f"127.0.0.1:{node.event['port']}" in words


def test_proto_shows_certificates_where_there_is_tls(cli):
    files = {f"GENRPC_{name}": f"/{name}" for name in ("CERTFILE", "KEYFILE", "CACERTFILE")}
    words = shlex.split(cli("proto", "a@h:1", "math.sqrt", **files).stdout)
    assert words[1:9] == [
        *("-cacert", "/CACERTFILE", "-cert", "/CERTFILE", "-key", "/KEYFILE", "-authority", "h")
    ]


def test_proto_wants_a_function_after_the_node(cli):
    assert cli("proto", "a").returncode == 2


def test_proto_tells_that_a_node_has_no_address(cli):
    done = cli("proto", "a99999", "math.sqrt", GENRPC_PORT_DISCOVERY="stateless")
    assert done.returncode == 2
    assert "a99999" in done.stderr
