#!/usr/bin/env python3
"""Generate `generated/` from `protos/`, or check that it is up to date.

    python tools/generate.py            write generated/
    python tools/generate.py --check    exit 1, with a diff, where generated/ differs

`generated/` is checked in and never edited. It is installed as `genrpc._generated`, while the
files keep their canonical proto name (`genrpc/v1/genrpc.proto`), so that a user who compiles
the proto too gets no "duplicate symbol".

The compiler is the oldest supported grpcio-tools: generated code refuses to run under a
protobuf or grpcio older than its compiler's, and runs under newer ones. It and mypy-protobuf
cannot share an environment with the newest protobuf, so they get one of their own, made at the
first run under `.cache/` and remade when `TOOLS` changes.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "generated"

# All three decide what is written; a floating one would fail the check some day.
TOOLS = ("grpcio-tools==1.80.0", "mypy-protobuf==5.1.0", "protobuf==6.33.6")

INIT = '''"""Generated from protos/ by tools/generate.py. Do not edit."""\n'''


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description="Generate generated/ from protos/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name) / "generated"
        generate(PROTOS, fresh, tools_environment())
        if not check:
            replace(GENERATED, fresh)
            return 0
        found = differences(files_of(GENERATED), files_of(fresh))
    sys.stdout.writelines(found)
    if found:
        print("generated/ is not what protos/ gives: run tools/generate.py", file=sys.stderr)
    return 1 if found else 0


def tools_environment() -> Path:
    """Return the `bin` folder of an environment with exactly `TOOLS`, made if it is missing."""
    key = hashlib.sha256(" ".join((*TOOLS, sys.version)).encode()).hexdigest()[:12]
    home = ROOT / ".cache" / f"generate-{key}"
    binaries = home / ("Scripts" if os.name == "nt" else "bin")
    complete = home / "complete"
    if not complete.exists():
        venv.create(home, clear=True, with_pip=True)
        run(binaries, "-m", "pip", "install", "--quiet", *TOOLS)
        complete.touch()  # Last, so that an interrupted install is not taken for a whole one.
    return binaries


def generate(protos: Path, target: Path, binaries: Path) -> None:
    """Compile every proto under `protos` into the new folder `target`."""
    target.mkdir(parents=True)
    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{target}" for kind in ("mypy", "mypy_grpc")]
    run(binaries, "-m", "grpc_tools.protoc", f"--proto_path={protos}", *outputs, *sources)
    for path in target.rglob("*_pb2_grpc.py*"):
        package = path.parent.relative_to(target).as_posix().replace("/", ".")
        path.write_text(with_relative_import(path.read_text("utf-8"), package), "utf-8")
    for source in sources:
        # For `genrpc proto`, which prints it: protos/ itself is not installed.
        shutil.copyfile(protos / source, target / source)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        (folder / "__init__.py").write_text(INIT, "utf-8")


def with_relative_import(text: str, package: str) -> str:
    """Return a service module's `text` with the import of its messages made relative.

    protoc writes `from genrpc.v1 import genrpc_pb2 …`, where the installed name is
    `genrpc._generated.genrpc.v1`. Raises ValueError unless there is exactly one such import:
    then the compiler's output has changed and this tool must follow it.
    """
    absolute = f"\nfrom {package} import "
    if text.count(absolute) != 1:
        raise ValueError(f"expected one line {absolute.strip()!r}, found {text.count(absolute)}")
    return text.replace(absolute, "\nfrom . import ")


def run(binaries: Path, *arguments: str) -> None:
    """Run the tools' Python; its plug-ins for protoc are found on PATH."""
    path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run([binaries / "python", *arguments], check=True, env={**os.environ, "PATH": path})


def replace(target: Path, fresh: Path) -> None:
    """Make `target` what `fresh` is, touching only the files that differ."""
    present, wanted = files_of(target), files_of(fresh)
    for name in present.keys() - wanted.keys():
        (target / name).unlink()
    for name, text in wanted.items():
        if present.get(name) != text:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(text, "utf-8")


def files_of(folder: Path) -> dict[str, str]:
    """Return the text of every file under `folder`, by its path; byte code is no part of it."""
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(present: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Return the lines of a unified diff from `present` to `wanted`; empty if they are equal."""
    lines: list[str] = []
    for name in sorted(present.keys() | wanted.keys()):
        lines += difflib.unified_diff(
            present.get(name, "").splitlines(keepends=True),
            wanted.get(name, "").splitlines(keepends=True),
            f"generated/{name}" if name in present else "/dev/null",
            f"generated/{name} (from protos)" if name in wanted else "/dev/null",
        )
        if (name in present) != (name in wanted) and not (present.get(name) or wanted.get(name)):
            # Of an empty file that came or went, difflib has no line to show.
            lines.append(f"only in {'generated/' if name in present else 'protos'}: {name}\n")
    return lines


if __name__ == "__main__":
    sys.exit(main())
