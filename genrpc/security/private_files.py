"""Read and make files that only their owner may use: cookies and keys.

Rules, as ssh has them for its keys: a file that group or others can use, or that belongs to
somebody else than this user or root, is refused with UnsafeConfigurationError; what is made
here has mode 0600 from its first moment and never replaces a file. Windows has no such modes:
there the checks are left out. Any thread and any number of processes may call these functions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
from pathlib import Path

from genrpc.errors import ConfigurationError, UnsafeConfigurationError

MAX_BYTES = 1 << 20  # far more than a key with its chain; a wrong path must not fill the memory


def read_private_file(path: Path, what: str) -> bytes:
    """Return the content of `path` after a check that it is private.

    `what` is the word for it in messages, for example "cookie file". Raises FileNotFoundError
    if there is no such file, UnsafeConfigurationError if others can use it, ConfigurationError
    if it cannot be read.
    """
    try:
        # O_NONBLOCK: a named pipe must be refused below, not waited for here.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, what, error) from error
    try:
        # The open file is looked at, not its name, which could be exchanged in between.
        _check_private(os.fstat(descriptor), path, what)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, what, error) from error
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"The {what} {path} is larger than {MAX_BYTES} bytes.")
    return content


def _unreadable(path: Path, what: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"The {what} {path} cannot be read: {error.strerror or error}.")


def _check_private(status: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"The {what} {path} is not a regular file.")
    if os.name == "nt":
        return
    if status.st_uid not in (0, os.geteuid()):
        raise UnsafeConfigurationError(
            f"The {what} {path} belongs to another user (uid {status.st_uid}), who can change "
            f"it at will. Use a file of your own, or: sudo chown {os.geteuid()} "
            f"{shlex.quote(str(path))}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UnsafeConfigurationError(
            f"The {what} {path} has mode {mode:04o}: other users of this machine can use it. "
            f"Run: chmod 600 {shlex.quote(str(path))}"
        )


def make_private_file(path: Path, content: bytes) -> bool:
    """Make `path` with mode 0600 and all of `content`, or leave what is there as it is.

    Returns whether the file was made; False means that there was one already. Nobody ever
    sees a part of the content, and of several processes exactly one makes the file. Raises
    OSError, for example if the directory does not exist; then nothing is left behind.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(draft, content)
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        # No hard links on this file system (FAT, some network mounts). A plain rename would
        # replace another process's file, so give up "never a part" rather than "only once".
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return _write_if_new(path, content)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    return True


def _write_if_new(path: Path, content: bytes) -> bool:
    try:
        _write_new(path, content)
    except FileExistsError:
        return False
    return True


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def make_private_directory(path: Path) -> None:
    """Make `path` and what is missing above it, each with mode 0700; existing ones stay."""
    for directory in (*reversed(path.parents), path):
        with contextlib.suppress(FileExistsError):
            if not directory.exists():
                directory.mkdir(mode=0o700)
