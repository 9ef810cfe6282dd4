"""grpcurl, as a person uses it: by reflection, with a token, everything in JSON."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unary import SERVICE, token_for

HERE = __name__

_BESIDE = Path(sys.executable).with_name("grpcurl")
GRPCURL = str(_BESIDE) if _BESIDE.exists() else shutil.which("grpcurl")

pytestmark = pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")


def echo_all(*args, **kwargs):
    """Give all arguments back."""
    return [list(args), kwargs]


class Curl:
    """Runs grpcurl against a node."""

    def __init__(self, node):
        self.node = node
        self.token = token_for(node)

    def run(self, *words, token=True, data=None):
        argv = [GRPCURL, "-plaintext", "-max-time", "30"]
        if token:
            argv += ["-H", f"authorization: Bearer {self.token}"]
        if data is not None:
            argv += ["-d", json.dumps(data)]
        return subprocess.run(
            [*argv, f"127.0.0.1:{self.node.port}", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ask(self, method, data):
        done = self.run(f"{SERVICE}/{method}", data=data)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def call(self, module, function, **mfa):
        return self.ask("Call", {"mfa": {"module": module, "function": function, **mfa}})


@pytest.fixture
def curl(nodes):
    return Curl(nodes.start())


def test_the_first_call(curl):
    answer = curl.call("math", "factorial", args=[5])
    assert answer["result"] == {"value": 120}
    assert answer["node"] == curl.node.name
    assert answer["elapsed"].endswith("s")


def test_json_values_come_back(curl):
    values = [0, 2**53, -1.5, True, None, "grüße", [[]], {"a": {}}]
    answer = curl.call(HERE, "echo_all", args=values, kwargs={"k": [1]})
    assert answer["result"]["value"] == [values, {"k": [1]}]


def test_terms(curl):
    answer = curl.call("math", "factorial", terms={"args": [{"int_value": 30}]})
    assert answer["result"] == {"term": {"big_int_value": "265252859812191058636308480000000"}}


def test_json_as_bytes(curl):
    data = base64.b64encode(b'[[7],{"k":"v"}]').decode()
    encoded = {"content_type": "application/json", "data": data}
    answer = curl.call(HERE, "echo_all", encoded=encoded)["result"]["encoded"]
    assert answer["content_type"] == "application/json"
    assert json.loads(base64.b64decode(answer["data"])) == [[7], {"k": "v"}]


def test_an_exception_is_data(curl):
    error = curl.call("operator", "truediv", args=[1, 0])["error"]
    assert error["reason"] == "ERROR_REASON_EXIT"
    assert error["execution"] == "EXECUTION_FINISHED"
    assert error["exception"]["type"] == "builtins.ZeroDivisionError"
    assert "encoded" not in error["exception"]


def test_the_details_of_a_refusal_are_shown(curl):
    mfa = {"module": "math", "function": "sqrt", "encoded": {"content_type": "a/b"}}
    done = curl.run(f"{SERVICE}/Call", data={"mfa": mfa})
    assert "Code: InvalidArgument" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "ErrorInfo" in line]
    info = json.loads(line[line.index("{") :])
    assert (info["domain"], info["reason"]) == ("genrpc", "BAD_ARGUMENTS")
    assert info["metadata"] == {"execution": "NOT_STARTED"}


def test_cast_list_and_status(curl):
    mfa = {"module": HERE, "function": "echo_all"}
    assert curl.ask("Cast", {"mfa": mfa}) == {"node": curl.node.name}
    (listed,) = curl.ask("ListFunctions", {"prefix": f"{HERE}.echo"})["functions"]
    assert listed["signature"] == "(*args, **kwargs)"
    assert listed["summary"] == "Give all arguments back."
    assert curl.ask("GetStatus", {})["node"] == curl.node.name


def test_reflection_asks_for_the_token(curl):
    assert SERVICE in curl.run("list").stdout.split()
    methods = curl.run("list", SERVICE).stdout.split()
    names = ("Call", "Cast", "Connect", "GetStatus", "ListFunctions")
    assert methods == [f"{SERVICE}.{name}" for name in names]
    assert "rpc Connect ( stream" in curl.run("describe", SERVICE).stdout
    without = curl.run("list", token=False)
    assert without.returncode != 0
    assert "NodeService" not in without.stdout


def test_nesting_that_is_too_deep_is_an_error_and_no_crash(curl):
    value: list = []
    for _ in range(500):
        value = [value]
    done = curl.run(
        f"{SERVICE}/Call", data={"mfa": {"module": HERE, "function": "echo_all", "args": value}}
    )
    assert done.returncode != 0
    assert curl.call("math", "sqrt", args=[4])["result"] == {"value": 2}
