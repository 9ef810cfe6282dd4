"""What an installed genrpc consists of, and what it asks for."""

import configparser
import importlib
import json
import os
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
GENERATED = "genrpc._generated.genrpc.v1"


@pytest.fixture
def installed():
    """The files of the installed wheel, as paths from site-packages."""
    # Building leaves an egg-info in the checkout, which may be found first.
    wheels = [each for each in metadata.distributions(name="genrpc") if _is_wheel(each)]
    if not wheels and "CI" not in os.environ:
        pytest.skip("not installed from a wheel, as tox does it")
    return {str(path) for path in wheels[0].files}


def _is_wheel(distribution):
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    is_editable = origin.get("dir_info", {}).get("editable")
    return distribution.read_text("WHEEL") is not None and not is_editable


def test_wheel_ships_no_top_level_name_but_genrpc(installed):
    names = {path.split("/")[0] for path in installed if not path.startswith("../")}
    assert {name for name in names if not name.endswith(".dist-info")} == {"genrpc"}


def test_wheel_ships_every_module_of_the_checkout(installed):
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "genrpc").rglob("*.py")}
    generated = (ROOT / "generated").rglob("*.py*")
    wanted |= {
        f"genrpc/_generated/{path.relative_to(ROOT / 'generated')}"
        for path in generated
        if path.suffix in {".py", ".pyi"}
    }
    assert wanted - installed == set()


def test_wheel_ships_the_marker_of_typed_packages(installed):
    assert "genrpc/py.typed" in installed


def test_generated_code_is_importable_where_it_is_installed():
    messages = importlib.import_module(f"{GENERATED}.genrpc_pb2")
    service = importlib.import_module(f"{GENERATED}.genrpc_pb2_grpc")
    assert service.genrpc_dot_v1_dot_genrpc__pb2 is messages


def test_generated_code_has_the_canonical_name_of_the_proto():
    # Another name would clash with the code of a user who compiles the proto too.
    messages = importlib.import_module(f"{GENERATED}.genrpc_pb2")
    assert messages.DESCRIPTOR.name == "genrpc/v1/genrpc.proto"
    assert messages.DESCRIPTOR.package == "genrpc.v1"


def test_proto_is_shipped_beside_the_generated_code():
    text = resources.files(GENERATED).joinpath("genrpc.proto").read_text("utf-8")
    assert text == (ROOT / "protos/genrpc/v1/genrpc.proto").read_text("utf-8")


def test_oldest_environment_pins_the_lowest_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(text for extra in extras for text in extra)]
    lowest = dict(map(lowest_version, asked))
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", "utf-8")
    pins = dict(
        line.split("==") for line in tox["testenv:oldest"]["deps"].splitlines() if "==" in line
    )
    assert pins == lowest


def lowest_version(requirement):
    """`("grpcio", "1.78")` of `"grpcio>=1.78,<2"`."""
    name, _, versions = requirement.partition(";")[0].partition(">=")
    return name, versions.partition(",")[0].strip()
