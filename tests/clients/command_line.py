"""The cases of examples/clients/, done with grpcurl and with `buf curl`.

Both give a case as the clients in other languages print it: a dict without its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2
from pages import ROOT

Told = dict[str, Any]

SERVICE = "genrpc.v1.NodeService"
SECONDS = 40

TUPLE = {
    "tuple_value": {
        "items": [
            {},
            {"bool_value": True},
            {"int_value": str(2**53 + 1)},
            {"big_int_value": str(2**70)},
            {"float_value": 0.5},
            {"string_value": "é"},
            {"bytes_value": "AAH/"},
            {"atom_value": "ok"},
            {
                "map_value": {
                    "entries": [{"key": {"int_value": "1"}, "value": {"list_value": {}}}],
                }
            },
            {"set_value": {"items": [{"string_value": "a"}]}},
        ]
    }
}
"""One of every kind of Term; a Term with nothing set is None."""

LARGE = bytes(i * 31 % 251 for i in range(2**20))

FACTORIAL = {"module": "math", "function": "factorial", "args": [5]}
CALLS: dict[str, Told] = {
    "unary_args": FACTORIAL,
    "unary_kwargs": {
        "module": "builtins",
        "function": "sorted",
        "args": [[3, 1, 2]],
        "kwargs": {"reverse": True},
    },
    "unary_terms": {"module": "copy", "function": "deepcopy", "terms": {"args": [TUPLE]}},
    "exception": {"module": "operator", "function": "truediv", "args": [1, 0]},
    "undefined_function": {"module": "math", "function": "no_such_function"},
    "status_code_and_message": {"module": "os", "function": "getpid"},
}

Ask = Callable[..., Told]
"""`ask(method, request, token=True, seconds=20)` gives {"response": …} or {"status": …}."""


def cases(ask: Ask) -> Iterator[tuple[str, Told]]:
    """Do all cases."""
    status = ask("GetStatus", {})["response"]
    yield "empty_unary", {"response": {"node": status["node"]}}
    for name, mfa in CALLS.items():
        yield name, ask("Call", {"mfa": mfa})
    refused = ask("Call", {"mfa": FACTORIAL}, token=False)
    yield "custom_metadata", {**ask("Call", {"mfa": FACTORIAL}), **refused}
    sleep = {"module": "time", "function": "sleep", "args": [30]}
    yield "timeout_on_sleeping_server", ask("Call", {"mfa": sleep}, seconds=0.3)
    large = {"args": [{"bytes_value": base64.b64encode(LARGE).decode()}]}
    mfa = {"module": "copy", "function": "deepcopy", "terms": large}
    answer = ask("Call", {"mfa": mfa})
    assert "response" in answer, answer
    term = answer["response"]["result"]["term"]
    came = base64.b64decode(term.get("bytes_value") or term["bytesValue"])
    digest = hashlib.sha256(came).hexdigest()
    yield "large_unary", {"bytes": len(came), "sha256": digest}


def grpcurl(address: str, token: str) -> Ask:
    """Ask with grpcurl, which learns the proto by reflection and wants the token for it."""

    def ask(method: str, request: Told, *, seconds: float = 20, **given: bool) -> Told:
        option = "-H" if given.get("token", True) else "-reflect-header"
        words = ["grpcurl", "-plaintext", "-format-error", "-max-time", str(seconds), "-d", "@"]
        words += [option, f"authorization: Bearer {token}"]
        ended = _run([*words, address, f"{SERVICE}/{method}"], request)
        if ended.returncode == 0:
            return {"response": json.loads(ended.stdout)}
        error = json.loads(ended.stderr)
        status = {"code": _name(error["code"]), "message": error["message"]}
        for detail in error.get("details", []):
            if detail["@type"].endswith("/google.rpc.ErrorInfo"):
                status |= {name: detail[name] for name in ("reason", "domain")}
                status |= detail["metadata"]
        return {"status": status}

    return ask


def buf(address: str, token: str) -> Ask:
    """Ask with `buf curl`, which is given the proto."""

    def ask(method: str, request: Told, *, seconds: float = 20, **given: bool) -> Told:
        words = ["buf", "curl", "--schema", str(ROOT / "protos"), "--protocol", "grpc"]
        words += ["--http2-prior-knowledge", "--timeout", f"{int(seconds * 1000)}ms", "-d", "@-"]
        if given.get("token", True):
            words += ["-H", f"authorization: Bearer {token}"]
        ended = _run([*words, f"http://{address}/{SERVICE}/{method}"], request)
        if ended.returncode == 0:
            return {"response": json.loads(ended.stdout)}
        error = json.loads(ended.stderr)
        status = {"code": error["code"].upper(), "message": error["message"]}
        for detail in error.get("details", []):
            if detail["type"] == "google.rpc.ErrorInfo":
                # Without padding, which Python's base64 wants.
                info = error_details_pb2.ErrorInfo.FromString(
                    base64.b64decode(detail["value"] + "==")
                )
                status |= {"reason": info.reason, "domain": info.domain, **info.metadata}
        return {"status": status}

    return ask


def _run(words: list[str], request: Told) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _name(code: int) -> str:
    return next(each.name for each in grpc.StatusCode if each.value[0] == code)
