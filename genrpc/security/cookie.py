"""The cookie: the secret that the nodes of one cluster share.

It comes from the setting `cookie`, else from the file `cookie_file`, else from
`$XDG_CONFIG_HOME/genrpc/cookie`, which is made at first use. Rules: the text is turned into
the derived key at once and not kept; it is never logged, shown or pickled; a file that others
can use is refused, and so is a text short enough to be guessed. Any thread and any number of
processes may load it at once: all get the same cookie.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import NoReturn

from genrpc.errors import ConfigurationError, UnsafeConfigurationError
from genrpc.security.handshake import derive_key
from genrpc.security.private_files import (
    make_private_directory,
    make_private_file,
    read_private_file,
)
from genrpc.settings import MIN_COOKIE_CHARACTERS, Settings

log = logging.getLogger("genrpc.security")


class Cookie:
    """The key derived from a cookie; the text itself is not kept."""

    __slots__ = ("key",)

    def __init__(self, text: str) -> None:
        """Derive the key from a cookie's text, without the white space around it."""
        self.key = derive_key(text.strip().encode())

    def __repr__(self) -> str:
        return "<Cookie>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A copy of the key in a pickle could leave the process by any call's arguments.
        raise TypeError("A Cookie cannot be pickled or copied: it must not leave its process.")


def load_cookie(settings: Settings) -> Cookie:
    """Return the cookie of these settings; its file is made at first use.

    Raises UnsafeConfigurationError (others can use the file, or the text is too short) or
    ConfigurationError (the file cannot be read or made).
    """
    return Cookie(cookie_text(settings))


def cookie_text(settings: Settings) -> str:
    """Return the cookie itself, for `genrpc cookie`; raises as `load_cookie` does."""
    if settings.cookie is not None:
        return _checked(settings.cookie, "setting 'cookie'")
    path = cookie_path(settings)
    content = _read_or_make(path, explicit=settings.cookie_file is not None)
    return _checked(content.decode(errors="surrogateescape"), f"cookie file {path}")


def cookie_path(settings: Settings) -> Path:
    """Return the file that holds the cookie unless the setting `cookie` is given."""
    if settings.cookie_file is not None:
        return Path(settings.cookie_file)
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification: relative paths are invalid and to be ignored.
    if os.path.isabs(configured):
        return Path(configured, "genrpc", "cookie")
    try:
        return Path.home() / ".config" / "genrpc" / "cookie"
    except RuntimeError as error:
        raise ConfigurationError(
            "This user has no home directory to keep a cookie in. Name a file with the setting "
            "'cookie_file'."
        ) from error


def _checked(text: str, source: str) -> str:
    # The setting was checked by Settings, but for its encoding; the file by nobody yet.
    text = text.strip()
    # Not by catching a UnicodeError: that carries the text, and tracebacks get logged.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigurationError(f"The {source} is not UTF-8 text; letters and digits are enough.")
    if len(text) < MIN_COOKIE_CHARACTERS:
        raise UnsafeConfigurationError(
            f"The {source} has {len(text)} characters and can be guessed: at least "
            f"{MIN_COOKIE_CHARACTERS} are needed. Without any, genrpc makes one of 64."
        )
    return text


def _read_or_make(path: Path, *, explicit: bool) -> bytes:
    try:
        return read_private_file(path, "cookie file")
    except FileNotFoundError:
        _make(path, explicit=explicit)
    try:
        return read_private_file(path, "cookie file")
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"The cookie file {path} disappeared while it was made, or is a link to nowhere."
        ) from error


def _make(path: Path, *, explicit: bool) -> None:
    try:
        if not explicit:
            make_private_directory(path.parent)
        made = make_private_file(path, f"{secrets.token_hex(32)}\n".encode())
    except OSError as error:
        raise ConfigurationError(
            f"There is no cookie file {path}, and it cannot be made: {error.strerror or error}. "
            "Make its directory, or name another file with the setting 'cookie_file'."
        ) from error
    if made:
        log.info("made the cookie file %s; nodes with the same cookie can call each other", path)
