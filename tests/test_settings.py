"""Settings: where they come from, what is allowed, and what a mistake is told."""

import dataclasses
import json
import logging
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc.errors import ConfigurationError, UnsafeConfigurationError
from genrpc.settings import Settings

COOKIE = "a cookie that nobody knows"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a file and let GENRPC_CONFIG name it."""

    def write(text: str) -> Path:
        path = tmp_path / "genrpc.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        monkeypatch.setenv("GENRPC_CONFIG", str(path))
        return path

    return write


@pytest.fixture
def table(config: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same, for lines of the table [genrpc]."""
    return lambda lines: config("[genrpc]\n" + lines)


# ---------------------------------------------------------------- defaults


def test_defaults_are_those_of_the_contract():
    settings = Settings()
    expected = {
        "tcp_server_port": 5369,
        "listen_address": "127.0.0.1",
        "tcp_client_port": 5369,
        "remote_tcp_server_ports": {},
        "port_discovery": "local",
        "connect_timeout": 5.0,
        "send_timeout": 5.0,
        "receive_timeout": 15.0,
        "client_inactivity_timeout": None,
        "async_call_inactivity_timeout": None,
        "cookie": None,
        "cookie_file": None,
        "certfile": None,
        "rpc_module_control": "disabled",
        "rpc_module_list": (),
        "executor": "thread",
        "max_workers": 256,
        "switch_interval": None,
        "max_message_bytes": 512 * 1024**2,
        "max_frame_bytes": 4 * 1024**2,
        "max_calls": 10_000,
        "max_queued_casts": 1_000_000,
        "max_unread_reply_bytes": 1024**3,
        "insecure_listen": False,
        "send_tracebacks": True,
        "channelz": False,
    }
    assert {name: getattr(settings, name) for name in expected} == expected


def test_every_setting_is_described():
    described = {d.name: d for d in Settings.describe()}
    assert set(described) == {f.name for f in dataclasses.fields(Settings)} - {"_sources"}
    assert all(d.doc for d in described.values())
    assert described["receive_timeout"].default == 15.0
    assert described["receive_timeout"].unit == "seconds"
    assert described["max_frame_bytes"].unit == "bytes"
    assert described["max_calls"].unit == ""
    assert described["max_calls"].allowed == "a whole number, 1 or more"
    assert described["tcp_server_port"].allowed.endswith("or none: do not listen")


@pytest.mark.parametrize("description", Settings.describe(), ids=lambda d: d.name)
def test_every_default_is_allowed(description):
    given_again = Settings(**{description.name: description.default})
    assert given_again == Settings()


# ---------------------------------------------------------------- where values come from


def test_keywords_go_before_environment_before_file(table, monkeypatch):
    table("receive_timeout = 1\nsend_timeout = 1\nconnect_timeout = 1")
    monkeypatch.setenv("GENRPC_SEND_TIMEOUT", "2")
    monkeypatch.setenv("GENRPC_CONNECT_TIMEOUT", "2")
    settings = Settings(connect_timeout=3)
    values = (settings.receive_timeout, settings.send_timeout, settings.connect_timeout)
    assert values == (1.0, 2.0, 3.0)


def test_none_by_keyword_is_a_value(monkeypatch):
    monkeypatch.setenv("GENRPC_RECEIVE_TIMEOUT", "2")
    assert Settings(receive_timeout=None).receive_timeout is None


def test_source_of_a_value_can_be_asked_for(table, monkeypatch):
    path = table("max_calls = 5")
    monkeypatch.setenv("GENRPC_MAX_WORKERS", "2")
    settings = Settings(tcp_server_port=5369)
    assert settings.source_of("max_calls") == f"file {path}"
    assert settings.source_of("max_workers") == "environment variable GENRPC_MAX_WORKERS"
    assert settings.source_of("tcp_server_port") == "keyword"
    assert settings.source_of("executor") == "default"
    assert settings.is_given("tcp_server_port")
    assert not settings.is_given("executor")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("receive_timeout", "2", 2.0),
        ("connect_timeout", " 0.25 ", 0.25),
        ("receive_timeout", "none", None),
        ("receive_timeout", "inf", None),
        ("client_inactivity_timeout", "1.5", 1.5),
        ("tcp_server_port", "None", None),
        ("tcp_server_port", "0", 0),
        ("certfile", "none", None),
        ("max_calls", "12", 12),
        ("rpc_module_control", "blacklist", "blacklist"),
        ("rpc_module_list", '["math", "os:getcwd"]', ("math", "os:getcwd")),
        ("rpc_module_list", "[]", ()),
        ("remote_tcp_server_ports", '{"a": 5, "b@h": "h2:6"}', {"a@127.0.0.1": 5, "b@h": "h2:6"}),
        ("executor_per_module", '{"numpy": "process"}', {"numpy": "process"}),
        ("insecure_listen", "true", True),
        ("send_tracebacks", "No", False),
        ("send_tracebacks", "0", False),
        ("insecure_listen", "1", True),
        ("port_discovery", "stateless", "stateless"),
        ("listen_address", "[::1]", "::1"),
        ("max_calls", "", 10_000),
    ],
)
def test_spelling_in_the_environment(monkeypatch, name, text, value):
    monkeypatch.setenv(f"GENRPC_{name.upper()}", text)
    assert getattr(Settings(), name) == value


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("receive_timeout = 2", "receive_timeout", 2.0),
        ('receive_timeout = "none"', "receive_timeout", None),
        ('tcp_server_port = "none"', "tcp_server_port", None),
        ('rpc_module_list = ["math"]', "rpc_module_list", ("math",)),
        ("insecure_listen = true", "insecure_listen", True),
        ('remote_tcp_server_ports = {"a@h" = 7}', "remote_tcp_server_ports", {"a@h": 7}),
        (f'cookie = "{COOKIE}"', "cookie", COOKIE),
    ],
)
def test_spelling_in_the_file(table, line, name, value):
    table(line)
    assert getattr(Settings(), name) == value


def test_file_without_the_table_says_nothing(config):
    config("[other]\nreceive_timeout = 1\n")
    assert Settings() == Settings(receive_timeout=15.0)


def test_paths_know_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("GENRPC_COOKIE_FILE", "~/cookie")
    assert Settings().cookie_file == "/home/me/cookie"
    assert Settings(cookie_file=tmp_path / "c").cookie_file == str(tmp_path / "c")


def test_cookie_loses_the_white_space_around_it():
    assert Settings(cookie=f"  {COOKIE}\n").cookie == COOKIE


def test_callable_discovery_is_given_by_keyword():
    def find(node: str) -> None:
        return None

    assert Settings(port_discovery=find).port_discovery is find


def test_sets_and_tuples_are_lists_too():
    assert Settings(nonblocking={"math"}).nonblocking == ("math",)
    assert Settings(rpc_module_list=("a", "b:c")).rpc_module_list == ("a", "b:c")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("connect_timeout", "soon"), ("connect_timeout", -1), ("connect_timeout", math.nan)),
        *(("receive_timeout", [1]), ("receive_timeout", True), ("receive_timeout", "5")),
        *(("handshake_timeout", None), ("handshake_timeout", 0), ("handshake_timeout", math.inf)),
        *(("client_inactivity_timeout", 0), ("server_inactivity_timeout", "never")),
        *(("tcp_server_port", 70000), ("tcp_server_port", "http"), ("tcp_server_port", True)),
        *(("tcp_client_port", -3), ("tcp_client_port", 0), ("tcp_client_port", None)),
        *(("rpc_module_control", "greylist"), ("rpc_module_control", 1)),
        *(("rpc_module_list", 7), ("rpc_module_list", "math"), ("rpc_module_list", ["a-b"])),
        *(("rpc_module_list", [1]), ("nonblocking", ["m:a.b.c"])),
        *(("port_discovery", "carrier pigeon"), ("port_discovery", 5)),
        *(("remote_tcp_server_ports", 5), ("remote_tcp_server_ports", {"a b": 5})),
        *(("remote_tcp_server_ports", {"a": 0}), ("remote_tcp_server_ports", {"a": "host"})),
        *(("remote_tcp_server_ports", {"a": None}), ("remote_tcp_server_ports", {1: 5})),
        *(("executor", "fiber"), ("executor_per_module", {"m": "fiber"})),
        *(("executor_per_module", {"": "thread"}), ("executor_per_module", ["m"])),
        *(("max_workers", 0), ("max_workers", "many"), ("max_workers", None), ("max_calls", 1.5)),
        *(("max_message_bytes", -1), ("max_frame_bytes", "big"), ("max_depth", 0)),
        *(("switch_interval", "often"), ("switch_interval", -1), ("switch_interval", 0)),
        *(("listen_address", ""), ("listen_address", "host:5"), ("listen_address", None)),
        *(("cookie_file", ""), ("cookie_file", 5), ("certfile", "a\0b")),
        *(("insecure_listen", "true"), ("send_tracebacks", 1), ("insecure_listen", None)),
    ],
)
def test_wrong_value_is_told_with_name_value_source_and_what_is_allowed(name, value):
    with pytest.raises(ConfigurationError) as caught:
        Settings(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"setting {name}: the value {value!r} (keyword) is not allowed")
    assert "; allowed is " in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("receive_timeout", "soon"),
        ("tcp_client_port", "seventy"),
        ("tcp_client_port", "none"),
        ("rpc_module_list", "math,os"),
        ("remote_tcp_server_ports", "[5]"),
        ("insecure_listen", "maybe"),
    ],
)
def test_wrong_value_in_the_environment_names_the_variable(monkeypatch, name, text):
    variable = f"GENRPC_{name.upper()}"
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert all(word in str(caught.value) for word in (name, text.strip("[]"), variable))


def test_list_in_the_environment_is_json(monkeypatch):
    monkeypatch.setenv("GENRPC_NONBLOCKING", "math")
    with pytest.raises(ConfigurationError, match="JSON"):
        Settings()


def test_wrong_value_in_the_file_names_the_file(table):
    path = table('executor = "fiber"')
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert all(word in str(caught.value) for word in ("executor", "fiber", str(path)))


def test_keyword_mends_a_mistake_outside(table, monkeypatch):
    table('send_timeout = "x"\nreceive_timeout = "x"')
    monkeypatch.setenv("GENRPC_RECEIVE_TIMEOUT", "soon")
    settings = Settings(receive_timeout=1, send_timeout=2)
    assert (settings.receive_timeout, settings.send_timeout) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("keyword", "near"), [("recieve_timeout", "receive_timeout"), ("zzz", None), ("_sources", None)]
)
def test_unknown_keyword_names_the_nearest_setting(keyword, near):
    with pytest.raises(ConfigurationError, match=keyword) as caught:
        Settings(**{keyword: 1})
    assert ("did you mean" in str(caught.value)) is (near is not None)
    assert near is None or repr(near) in str(caught.value)


def test_unknown_key_of_the_file_is_a_mistake(table):
    path = table("recieve_timeout = 3")
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert all(w in str(caught.value) for w in ("recieve_timeout", "'receive_timeout'", str(path)))


def test_near_miss_in_the_environment_is_logged(monkeypatch, caplog):
    monkeypatch.setenv("GENRPC_RECIEVE_TIMEOUT", "secret value")
    with caplog.at_level(logging.WARNING):
        assert Settings().receive_timeout == 15.0
    assert "GENRPC_RECIEVE_TIMEOUT" in caplog.text
    assert "'receive_timeout'" in caplog.text
    assert "secret value" not in caplog.text


def test_foreign_variable_with_the_prefix_is_no_business_of_ours(monkeypatch, caplog):
    monkeypatch.setenv("GENRPC_HOMEPAGE", "x")
    with caplog.at_level(logging.DEBUG):
        Settings()
    assert caplog.text == ""


@pytest.mark.parametrize("content", ["[genrpc", "[genrpc]\nreceive_timeout = ", "genrpc = 5"])
def test_file_that_makes_no_sense_is_told(config, content):
    path = config(content)
    with pytest.raises(ConfigurationError, match=r"TOML|table") as caught:
        Settings()
    assert str(path) in str(caught.value)


def test_file_that_is_no_text_is_told(config):
    path = config("")
    path.write_bytes(b"\xff\xfe[genrpc]")
    with pytest.raises(ConfigurationError, match="TOML"):
        Settings()


def test_missing_file_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("GENRPC_CONFIG", str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml.*cannot be read"):
        Settings()


def test_tls_files_are_given_together():
    with pytest.raises(ConfigurationError, match="not set: keyfile, cacertfile"):
        Settings(certfile="cert.pem")
    files = {"certfile": "a", "keyfile": "b", "cacertfile": "c"}
    assert Settings(**files).keyfile == "b"


def test_no_other_file_is_read(tmp_path):
    missing = str(tmp_path / "missing")
    files = {"certfile": missing, "keyfile": missing, "cacertfile": missing}
    assert Settings(cookie_file=missing, **files).cookie_file == missing


# ---------------------------------------------------------------- the cookie


def test_cookie_is_in_no_representation():
    settings = Settings(cookie=COOKIE, receive_timeout=3)
    assert repr(settings) == "Settings(receive_timeout=3.0, cookie=<hidden>)"
    assert COOKIE not in str(settings)


@pytest.mark.parametrize("cookie", ["too short", " " * 20 + "short", "x" * 15])
def test_short_cookie_is_unsafe(cookie):
    with pytest.raises(UnsafeConfigurationError, match="16 characters") as caught:
        Settings(cookie=cookie)
    assert cookie not in str(caught.value)


@pytest.mark.parametrize("cookie", [b"0123456789abcdef0123456789", COOKIE + "\0", 5])
def test_wrong_cookie_is_not_repeated(cookie):
    with pytest.raises(ConfigurationError, match="setting cookie") as caught:
        Settings(cookie=cookie)
    assert str(cookie) not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o620, 0o602])
def test_cookie_in_a_file_that_others_can_use_is_unsafe(table, mode):
    path = table(f'cookie = "{COOKIE}"')
    path.chmod(mode)
    with pytest.raises(UnsafeConfigurationError, match="chmod 600") as caught:
        Settings()
    assert COOKIE not in str(caught.value)


# ---------------------------------------------------------------- immutable values


def test_settings_are_frozen():
    settings = Settings(remote_tcp_server_ports={"a": 5})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.receive_timeout = 4.0
    with pytest.raises(TypeError):
        settings.remote_tcp_server_ports["b@127.0.0.1"] = 6


def test_settings_do_not_follow_the_callers_table():
    mine = {"a@h": 5}
    settings = Settings(remote_tcp_server_ports=mine)
    mine["b@h"] = 6
    assert settings.remote_tcp_server_ports == {"a@h": 5}


def test_settings_are_equal_by_value_whatever_the_source(monkeypatch):
    by_keyword = Settings(max_calls=5)
    monkeypatch.setenv("GENRPC_MAX_CALLS", "5")
    assert Settings() == by_keyword
    assert hash(Settings()) == hash(by_keyword)
    assert Settings(max_calls=6) != by_keyword


def test_changed_copy_keeps_the_rest(monkeypatch):
    monkeypatch.setenv("GENRPC_MAX_CALLS", "5")
    settings = Settings(receive_timeout=1)
    monkeypatch.delenv("GENRPC_MAX_CALLS")
    monkeypatch.setenv("GENRPC_MAX_WORKERS", "7")
    copy = settings.changed(send_timeout=2)
    assert (copy.max_calls, copy.receive_timeout, copy.send_timeout) == (5, 1.0, 2.0)
    assert copy.max_workers == 256
    assert copy.source_of("max_calls") == "environment variable GENRPC_MAX_CALLS"
    assert copy.source_of("send_timeout") == "keyword"
    assert settings.send_timeout == 5.0


def test_changes_are_checked_like_keywords():
    with pytest.raises(ConfigurationError, match="max_calls"):
        Settings().changed(max_calls=0)
    with pytest.raises(ConfigurationError, match="max_cals"):
        Settings().changed(max_cals=1)


def test_pickle_carries_the_values_and_not_the_environment(monkeypatch):
    settings = Settings(remote_tcp_server_ports={"a": 5}, receive_timeout=None, cookie=COOKIE)
    data = pickle.dumps(settings)
    monkeypatch.setenv("GENRPC_MAX_CALLS", "5")
    loaded = pickle.loads(data)
    assert loaded == settings
    assert loaded.source_of("cookie") == "keyword"


@given(st.dictionaries(st.sampled_from([d.name for d in Settings.describe()]), st.integers()))
def test_any_numbers_make_settings_or_a_configuration_error(changes):
    try:
        settings = Settings(**changes)
    except ConfigurationError:
        return
    assert settings.changed() == settings


def test_import_is_cheap():
    heavy = ["grpc", "google.protobuf", "dill", "rich", "tomllib", "tomli", "difflib", "json"]
    code = f"import sys, json; before = set(sys.modules) - {{'json'}}; del sys.modules['json']; \
import genrpc.settings; print([m for m in {heavy!r} if m in set(sys.modules) - before])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(done.stdout.replace("'", '"')) == []
