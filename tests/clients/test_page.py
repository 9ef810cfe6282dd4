"""docs/cross-language.md: what it shows is what happens, in every language that it has.

Each section is followed in a fresh home. One that cannot be followed for want of a program is
skipped with a line that says so; where CLIENTS_REQUIRED is set, as by .ci/run, it fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pages import PATH, ROOT, Reader, sections

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = sections(ROOT / "docs/cross-language.md")
PORTS = ["5369", "8080"]

WANTED = {
    "buf curl": ["buf"],
    "JavaScript": ["npm", "node"],
    "Ruby": ["ruby", "protoc", "grpc_ruby_plugin"],
    "Java": ["javac", "protoc", "grpc_java_plugin"],
    "curl, through Envoy": ["envoy", "protoc", "curl"],
}
"""Programs besides grpcurl, by section."""


def need(programs: list[str]) -> None:
    """Skip the test, or fail it in .ci/run, where a program is missing."""
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    if missing:
        text = f"This section cannot be followed: no {', '.join(missing)}; see .ci/run."
        (pytest.fail if os.environ.get("CLIENTS_REQUIRED") else pytest.skip)(text)


def test_every_section_that_wants_a_program_exists() -> None:
    assert WANTED.keys() <= PAGE.keys()


@pytest.mark.parametrize("heading", PAGE)
def test_page_does_what_it_shows(heading: str, tmp_path: Path) -> None:
    need(WANTED.get(heading, ["grpcurl"]))
    with Reader(tmp_path, ports=PORTS, seconds=120) as reader:
        for block in PAGE[heading]:
            reader.follow(block)
