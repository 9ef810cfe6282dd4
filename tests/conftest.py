"""The environment of every test: no settings of the machine's, a home of its own."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from nodes import Nodes

# With DEBUG, grpcio logs a server that was never stopped while it is deallocated; who keeps the
# record, as pytest does, then has a server that is no more, and the process crashes.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.INFO)

# What a shell runs with `&` ignores Ctrl-C, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's settings and cookie from the tests, and theirs from the user.

    For the whole session, because nodes of module-scoped fixtures read the environment before
    a fixture of one test could change it. A test that changes it uses `monkeypatch`.
    """
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GENRPC_")]:
            patch.delenv(name)
        for name, folder in {
            "HOME": "",
            "USERPROFILE": "",
            "XDG_CONFIG_HOME": ".config",
            "XDG_DATA_HOME": ".local/share",
            "XDG_STATE_HOME": ".local/state",
            "XDG_CACHE_HOME": ".cache",
            "XDG_RUNTIME_DIR": "run",
        }.items():
            path = home / folder
            # 0700: the runtime directory and the cookie's folder are refused otherwise.
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            patch.setenv(name, str(path))
        yield


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Starts nodes in this process that find each other; see tests/nodes.py."""
    with Nodes() as nodes:
        yield nodes
