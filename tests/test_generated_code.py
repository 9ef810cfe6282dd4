"""`tools/generate.py`: what it does to the compiler's output, and what its check finds.

That generated/ is what protos/ gives is checked by `tools/generate.py --check` in tox.
"""

import importlib.util
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMPORT = "import grpc\n\nfrom genrpc.v1 import genrpc_pb2 as genrpc_dot_v1_dot_genrpc__pb2\n"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "tools/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_compiler(tool, tmp_path, monkeypatch):
    """Let the tool compile to `outcome.files`, in a project under `tmp_path`."""

    class Outcome:
        generated = tmp_path / "generated"
        files: ClassVar = {"genrpc/v1/genrpc_pb2.py": "messages\n"}

    def compile_(protos, target, binaries):
        for name, text in Outcome.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(text)

    monkeypatch.setattr(tool, "GENERATED", Outcome.generated)
    monkeypatch.setattr(tool, "tools_environment", lambda: tmp_path)
    monkeypatch.setattr(tool, "generate", compile_)
    return Outcome


def test_import_of_the_messages_becomes_relative(tool):
    text = tool.with_relative_import(IMPORT, "genrpc.v1")
    assert "\nfrom . import genrpc_pb2 as genrpc_dot_v1_dot_genrpc__pb2\n" in text
    assert "genrpc.v1" not in text


@pytest.mark.parametrize("text", ["import grpc\n", IMPORT + IMPORT], ids=["none", "two"])
def test_compiler_output_of_another_shape_is_refused(tool, text):
    with pytest.raises(ValueError, match="expected one line"):
        tool.with_relative_import(text, "genrpc.v1")


def test_check_passes_on_what_was_generated(tool, fake_compiler, capsys):
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_check_fails_with_a_diff_on_an_edited_file(tool, fake_compiler, capsys):
    tool.main([])
    (fake_compiler.generated / "genrpc/v1/genrpc_pb2.py").write_text("edited\n")
    assert tool.main(["--check"]) == 1
    assert capsys.readouterr().out == (
        "--- generated/genrpc/v1/genrpc_pb2.py\n"
        "+++ generated/genrpc/v1/genrpc_pb2.py (from protos)\n"
        "@@ -1 +1 @@\n-edited\n+messages\n"
    )


@pytest.mark.parametrize("text", ["stale\n", ""], ids=["with text", "empty"])
def test_check_fails_on_a_file_that_no_proto_gives(tool, fake_compiler, capsys, text):
    tool.main([])
    (fake_compiler.generated / "stale.py").write_text(text)
    assert tool.main(["--check"]) == 1
    assert "stale.py" in capsys.readouterr().out


def test_check_fails_on_a_missing_file(tool, fake_compiler, capsys):
    tool.main([])
    (fake_compiler.generated / "genrpc/v1/genrpc_pb2.py").unlink()
    assert tool.main(["--check"]) == 1
    assert "+messages" in capsys.readouterr().out


def test_check_writes_nothing(tool, fake_compiler):
    assert tool.main(["--check"]) == 1
    assert not fake_compiler.generated.exists()


def test_generating_removes_what_no_proto_gives_any_more(tool, fake_compiler):
    fake_compiler.generated.mkdir()
    (fake_compiler.generated / "stale.py").touch()
    tool.main([])
    assert tool.files_of(fake_compiler.generated) == fake_compiler.files
