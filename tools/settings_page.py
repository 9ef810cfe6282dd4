#!/usr/bin/env python3
"""Write docs/settings.md from the settings themselves, or check that it says what they do.

    python tools/settings_page.py            write docs/settings.md
    python tools/settings_page.py --check    exit 1, with a diff, where it differs

It needs nothing but genrpc itself. The order is that of `genrpc.settings.Settings`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/settings.md"

HEAD = """\
<!-- Written by tools/settings_page.py. Do not edit. -->

# Settings

A setting is given as a keyword of `genrpc.start()` and `genrpc.Settings()`, as an environment
variable (`GENRPC_` and its name in capitals), or in the table `[genrpc]` of the TOML file that
the environment variable `GENRPC_CONFIG` names. The first of these that has it holds. All are read
once, when the node is made, and never change. A value that is not allowed is refused with a
sentence that names the setting, the value and what is allowed.

Durations are in seconds, sizes in bytes. `None` is written `none` in the environment and
`"none"` in TOML; lists and tables in the environment are JSON. See the
[guide](guide.md#settings) for examples and [security.md](security.md) for the secrets.

| setting | default | meaning | allowed |
| --- | --- | --- | --- |
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description="Write docs/settings.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args(arguments).check
    fresh = page()
    if not check:
        PAGE.write_text(fresh, encoding="utf-8")
        return 0
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    found = list(
        difflib.unified_diff(
            there.splitlines(keepends=True),
            fresh.splitlines(keepends=True),
            str(PAGE.relative_to(ROOT)),
            "what the settings say",
        )
    )
    sys.stdout.writelines(found)
    if found:
        print("docs/settings.md is out of date: run tools/settings_page.py", file=sys.stderr)
    return 1 if found else 0


def page() -> str:
    """Give the page's text."""
    # Imported here: the checkout is found from whatever folder the tool is run in.
    sys.path.insert(0, str(ROOT))
    from genrpc.settings import Settings

    rows = [
        f"| `{known.name}` | {_default(known.default, known.unit)} | {_cell(known.doc)}"
        f" | {_cell(known.allowed)} |\n"
        for known in Settings.describe()
    ]
    return HEAD + "".join(rows)


def _default(value: object, unit: str) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    if isinstance(value, tuple):
        value = list(value)
    if unit == "bytes" and isinstance(value, int):
        return _size(value)
    return f"`{value!r}`"


def _size(count: int) -> str:
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= factor and count % factor == 0:
            return f"`{count}` ({count // factor} {unit})"
    return f"`{count}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
