"""Ports that a node cannot have."""

import random
import socket
import subprocess
import sys

import pytest

import genrpc

TAKEN = """
import sys, genrpc
settings = genrpc.Settings(cookie="c" * 16, listen_address=sys.argv[1])
with genrpc.Node(f"a@{sys.argv[1]}", settings) as node:
    print(node.port)
"""


def test_taken_port_that_was_asked_for_is_refused_with_the_systems_reason():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            genrpc.Node("a@127.0.0.1", genrpc.Settings(tcp_server_port=port)).start()


def test_address_of_another_machine_is_refused_with_the_systems_reason():
    settings = genrpc.Settings(
        listen_address="192.0.2.1", insecure_listen=True, tcp_server_port=9, cookie="c" * 16
    )
    with pytest.raises(OSError, match=r"192\.0\.2\.1:9: Cannot assign"):
        genrpc.Node("a@127.0.0.1", settings).start()


def test_taken_default_port_is_left_for_a_free_one_without_a_word_on_stderr():
    # An address of its own: on 127.0.0.1 somebody else may have the port, and let it go meanwhile.
    address = ".".join(str(number) for number in (127, *random.sample(range(1, 255), 3)))
    with socket.create_server((address, 5369)):
        done = subprocess.run(
            [sys.executable, "-c", TAKEN, address], capture_output=True, text=True, timeout=50
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() != "5369"


def test_name_that_means_no_address_is_refused():
    settings = genrpc.Settings(
        listen_address="no-such-host.invalid", insecure_listen=True, tcp_server_port=1
    )
    with pytest.raises(OSError, match="cannot listen on no-such-host"):
        genrpc.Node("a@127.0.0.1", settings).start()
