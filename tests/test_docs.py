"""docs/: what the guide and the security page show is what happens; no link leads nowhere.

The page of other languages, which wants their toolchains, is followed in tests/clients/.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pages import ROOT, Block, Reader, expect, sections

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
GUIDE = sections(ROOT / "docs/guide.md")
SECURITY = sections(ROOT / "docs/security.md")

SET_UP = ["", "Start two nodes"]
"""The sections of the guide on which all others stand: the module, and the node b."""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("heading", [heading for heading in GUIDE if heading])
def test_guide_does_what_it_shows(heading: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        for needed in SET_UP:
            if needed != heading:
                for block in GUIDE[needed][:1]:
                    reader.follow(block)
        for block in GUIDE[heading]:
            reader.follow(block)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("heading", SECURITY)
def test_security_page_does_what_it_shows(heading: str, tmp_path: Path) -> None:
    with Reader(tmp_path, {"10.0.0.7": "db", "10.0.0.8": "web"}) as reader:
        for block in SECURITY[heading]:
            reader.follow(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = _prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Names in code marks that begin with a folder of the repository are files or folders of it."""
    folders = "benchmarks|docs|examples|generated|genrpc|protos|tests|tools"
    for name in re.findall(rf"`((?:{folders})/[^`\s]*)`", _prose(page)):
        assert list(ROOT.glob(name.rstrip("/"))), f"{page.name} names {name}"


def test_architecture_has_the_layers_that_are_checked() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    checked = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    (diagram,) = sections(ROOT / "docs/architecture.md")["Layers"]
    shown = [re.split(r"  +", line)[0] for line in diagram.text.splitlines()]
    assert [set(line.split(" | ")) for line in shown] == [set(x.split(" | ")) for x in checked]


def test_settings_page_says_what_the_settings_do() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "tools/settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("120\n", ["120"]),
        ("a   b\n\n", ["a b"]),
        ("took 3 ms\n", ["took … ms"]),
        ("one\ntwo\nthree\n", ["one", "…"]),
        ("one\ntwo\nthree\n", ["…", "three"]),
        ("whatever\n", []),
    ],
)
def test_an_output_as_shown_passes(output: str, shown: list[str]) -> None:
    expect(output, shown, "a command")


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("121\n", ["120"]),
        ("120\nmore\n", ["120"]),
        ("", ["120"]),
        ("Traceback (most recent call last):\n", []),
    ],
)
def test_another_output_than_shown_fails(output: str, shown: list[str]) -> None:
    with pytest.raises(AssertionError):
        expect(output, shown, "a command")


def test_a_block_tells_its_file() -> None:
    assert Block("python", "# jobs.py\nimport os\n", 1, "").file == ("", "jobs.py")
    assert Block("toml", "# a/node.toml on db\n", 1, "").file == ("db", "a/node.toml")
    assert Block("python", "# a remark\n", 1, "").file is None


def _prose(page: Path) -> str:
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", _prose(page))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.replace(" ", "-") for text in kept}
