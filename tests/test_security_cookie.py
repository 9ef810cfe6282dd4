"""The cookie: where it comes from, how its file is made, and which files are refused."""

import copy
import errno
import logging
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genrpc.errors import ConfigurationError, UnsafeConfigurationError
from genrpc.security import Cookie, cookie_path, cookie_text, derive_key, load_cookie
from genrpc.security.private_files import MAX_BYTES, make_private_file, read_private_file
from genrpc.settings import Settings

TEXT = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration directory of the test's own, and no GENRPC_ variables."""
    for name in list(os.environ):
        if name.startswith("GENRPC_"):
            monkeypatch.delenv(name)
    home = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home


def write(path: Path, content: str | bytes = TEXT, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---------------------------------------------------------------- the object


def test_cookie_holds_the_derived_key_only() -> None:
    cookie = Cookie(TEXT)
    assert cookie.key == derive_key(TEXT.encode())
    assert not hasattr(cookie, "__dict__")


def test_repr_shows_nothing() -> None:
    cookie = Cookie(TEXT)
    assert repr(cookie) == str(cookie) == "<Cookie>"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cookie_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="must not leave"):
        pickle.dumps([Cookie(TEXT)], protocol)


def test_cookie_cannot_be_copied() -> None:
    with pytest.raises(TypeError, match="must not leave"):
        copy.deepcopy(Cookie(TEXT))


# ---------------------------------------------------------------- where it comes from


def test_setting_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "cookie", "f" * 32)
    settings = Settings(cookie=TEXT, cookie_file=str(file))
    assert load_cookie(settings).key == derive_key(TEXT.encode())


def test_white_space_around_the_cookie_is_stripped(tmp_path: Path) -> None:
    file = write(tmp_path / "cookie", f"\t {TEXT} \r\n")
    assert cookie_text(Settings(cookie_file=str(file))) == TEXT
    assert cookie_text(Settings(cookie=f" {TEXT}\n")) == TEXT
    assert Cookie(f" {TEXT}\n").key == Cookie(TEXT).key


def test_default_file_is_made_at_first_use(config_home: Path) -> None:
    first = cookie_text(Settings())
    file = config_home / "genrpc" / "cookie"
    assert file.read_text() == first + "\n"
    assert len(bytes.fromhex(first)) == 32
    assert cookie_text(Settings()) == first
    assert mode_of(file) == 0o600
    assert mode_of(file.parent) == 0o700
    assert os.listdir(file.parent) == ["cookie"]


def test_modes_hold_under_a_lax_umask(config_home: Path) -> None:
    before = os.umask(0)
    try:
        cookie_text(Settings())
    finally:
        os.umask(before)
    assert mode_of(config_home / "genrpc" / "cookie") == 0o600
    assert mode_of(config_home / "genrpc") == 0o700


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_config_home_that_is_not_absolute_is_ignored(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cookie_path(Settings()) == tmp_path / ".config" / "genrpc" / "cookie"


def test_user_without_a_home_is_told_to_name_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigurationError, match="cookie_file"):
        cookie_path(Settings())


def test_named_file_is_made_where_its_directory_exists(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine"
    with caplog.at_level(logging.INFO, logger="genrpc"):
        text = cookie_text(Settings(cookie_file=str(file)))
    assert file.read_text().strip() == text
    assert mode_of(file) == 0o600
    assert str(file) in caplog.text
    assert text not in caplog.text


def test_named_file_in_a_missing_directory_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "cookie"
    with pytest.raises(ConfigurationError, match="Make its directory") as caught:
        cookie_text(Settings(cookie_file=str(file)))
    assert str(file) in str(caught.value)
    assert not isinstance(caught.value, UnsafeConfigurationError)
    assert not file.parent.exists()


def test_link_to_nowhere_is_a_configuration_error(tmp_path: Path) -> None:
    link = tmp_path / "cookie"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="link to nowhere"):
        cookie_text(Settings(cookie_file=str(link)))
    assert os.listdir(tmp_path) == ["cookie"]


# ---------------------------------------------------------------- who is first


def test_threads_that_start_at_once_get_one_cookie(config_home: Path) -> None:
    barrier, texts = threading.Barrier(16), []

    def load() -> None:
        barrier.wait(30)
        texts.append(cookie_text(Settings()))

    threads = [threading.Thread(target=load) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(texts) == 16
    assert set(texts) == {(config_home / "genrpc" / "cookie").read_text().strip()}
    assert os.listdir(config_home / "genrpc") == ["cookie"]


def test_processes_that_start_at_once_get_one_cookie(config_home: Path) -> None:
    program = (
        "import sys; from genrpc.security import cookie_text; from genrpc.settings import Settings;"
        "print('ready', flush=True); sys.stdin.readline(); print(cookie_text(Settings()))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    texts = {child.communicate(timeout=30)[0].strip() for child in children}
    assert texts == {(config_home / "genrpc" / "cookie").read_text().strip()}


def test_making_a_private_file_never_replaces_one(tmp_path: Path) -> None:
    file = write(tmp_path / "file", b"old")
    assert not make_private_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_system_without_hard_links_still_gets_its_cookie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "file"
    assert make_private_file(file, b"first")
    assert not make_private_file(file, b"second")
    assert file.read_bytes() == b"first"
    assert mode_of(file) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_failed_link_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        cookie_text(Settings(cookie_file=str(tmp_path / "cookie")))
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o602, 0o660, 0o666])
def test_file_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    file = write(tmp_path / "open cookie", mode=mode)
    with pytest.raises(UnsafeConfigurationError) as caught:
        load_cookie(Settings(cookie_file=str(file)))
    message = str(caught.value)
    assert f"{mode:04o}" in message
    assert f"chmod 600 '{file}'" in message
    assert TEXT not in message


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_file_that_only_its_owner_can_use_is_accepted(mode: int, tmp_path: Path) -> None:
    file = write(tmp_path / "cookie", mode=mode)
    assert cookie_text(Settings(cookie_file=str(file))) == TEXT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "cookie")
    shutil.chown(file, 12345)
    with pytest.raises(UnsafeConfigurationError, match="12345"):
        load_cookie(Settings(cookie_file=str(file)))


def test_default_file_is_checked_too(config_home: Path) -> None:
    cookie_text(Settings())
    (config_home / "genrpc" / "cookie").chmod(0o644)
    with pytest.raises(UnsafeConfigurationError, match="0644"):
        load_cookie(Settings())


def test_modes_are_not_looked_at_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "cookie", mode=0o644)
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        content = read_private_file(file, "cookie file")
    assert content == TEXT.encode()


@pytest.mark.parametrize("text", ["", "   \n", "x" * 15, "  " + "x" * 15 + "  "])
def test_short_cookie_is_refused_without_showing_it(text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "cookie", text)
    with pytest.raises(UnsafeConfigurationError, match="16 are needed") as caught:
        load_cookie(Settings(cookie_file=str(file)))
    assert "xxx" not in str(caught.value)


def test_cookie_variable_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "GENRPC_COOKIE", os.fsdecode(b"\xff" * 32))
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_cookie(Settings())


def test_cookie_of_16_characters_is_accepted() -> None:
    assert load_cookie(Settings(cookie="x" * 16)).key == derive_key(b"x" * 16)


def test_file_that_is_no_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    file = write(tmp_path / "cookie", b"\xff\xfe" * 20)
    with pytest.raises(ConfigurationError, match="not UTF-8") as caught:
        load_cookie(Settings(cookie_file=str(file)))
    assert caught.value.__context__ is None


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load_cookie(Settings(cookie_file=str(tmp_path)))


def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load_cookie(Settings(cookie_file=str(tmp_path / "pipe")))


def test_path_below_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_cookie(Settings(cookie_file=str(tmp_path / "file" / "cookie")))


def test_huge_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "cookie", b"x" * (MAX_BYTES + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        load_cookie(Settings(cookie_file=str(file)))
