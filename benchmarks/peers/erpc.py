"""Erlang/OTP's erpc, by the escript beside this module: the model that genrpc is held against.

Both sides are BEAM processes, whose schedulers use all cores. Needs `erl`, OTP 23 or newer.
"""

from __future__ import annotations

import functools
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.client import Job
from benchmarks.peers import Client, Peer, Ready, scenarios
from benchmarks.scenarios import Budget

ESCRIPT = Path(__file__).with_name("erpc.escript")
PROGRAMS = ("erl", "escript", "epmd")


class ErpcPeer(Peer):
    """The nodes of one measurement have an epmd and a cookie of their own."""

    name = "erpc"
    title = "OTP erpc"
    scenarios = scenarios("S1 C64 C64a A CAST P500K P500K-echo P10M HOL MC8")

    def missing(self) -> str | None:
        absent = [program for program in PROGRAMS if not shutil.which(program)]
        return f"no Erlang/OTP on PATH: {', '.join(absent)} not found" if absent else None

    @functools.cache  # noqa: B019  # there is one of it, for the whole process
    def version(self) -> str:
        shown = "io:format([79,84,80,32] ++ erlang:system_info(otp_release)), halt()."
        command = ["erl", "-noshell", "-eval", shown]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return found.stdout.strip()

    def environment(self, folder: Path) -> dict[str, str]:
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        return {"ERL_EPMD_PORT": str(port), "ERL_EPMD_ADDRESS": "127.0.0.1"}

    def background(self) -> list[list[str]]:
        return [["epmd"]]

    def server_command(self, scenario: str, number: int) -> list[str]:
        return ["escript", str(ESCRIPT), "serve", f"server{number}@127.0.0.1"]

    def client_command(self, job: Job) -> list[str]:
        budget = Budget(**job.budget)
        numbers = [f"{budget.seconds:.3f}", str(budget.async_calls), str(budget.casts)]
        nodes = [server["node"] for server in job.servers]
        return ["escript", str(ESCRIPT), "client", job.scenario, *numbers, *nodes]

    def connect(self, servers: Sequence[Ready]) -> Client:
        raise NotImplementedError("its clients are no Python")


PEER = ErpcPeer()
