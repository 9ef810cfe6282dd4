"""Coverage-guided fuzzing of every decoder of ours; see fuzz.py for what each may do."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scale import LONG, SEED, count

pytestmark = pytest.mark.slow

TARGETS = ("frames", "chunks", "neutral", "token", "settings")
SECONDS = count(8, 1800)

Fuzzers = dict[str, "subprocess.Popen[str]"]

# Set where atheris is among the tests' tools, so that its absence is no reason to skip there.
REQUIRED = "FUZZING_REQUIRED"


def test_fuzzer_is_there_where_it_should_be():
    if os.environ.get(REQUIRED):
        assert importlib.util.find_spec("atheris"), f"{REQUIRED} is set, and there is no atheris"


def start(target: str, folder: Path) -> subprocess.Popen[str]:
    # The measuring of coverage and atheris would be in each other's way.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return subprocess.Popen(
        [
            *(sys.executable, str(Path(__file__).with_name("fuzz.py")), target),
            *(f"-max_total_time={SECONDS}", f"-seed={SEED}", f"-artifact_prefix={folder}/"),
            *("-rss_limit_mb=1024", "-timeout=20", "-max_len=4096"),
        ],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzers]:
    """Starts fuzzers: the short ones all at once, for most of their time is their start."""
    folder = tmp_path_factory.mktemp("fuzzing")
    found: Fuzzers = {} if LONG else {target: start(target, folder) for target in TARGETS}
    yield found
    for process in found.values():
        process.kill()
        process.wait()


@pytest.mark.skipif(
    not importlib.util.find_spec("atheris"),
    reason="NOT FUZZED: atheris is not installed (it is in tox's environment `coverage`)",
)
@pytest.mark.parametrize("target", TARGETS)
def test_decoder_takes_whatever_comes(fuzzers, target, tmp_path):
    process = fuzzers.get(target) or start(target, tmp_path)
    fuzzers[target] = process
    output, _ = process.communicate(timeout=SECONDS + 50)
    assert process.returncode == 0, output[-5000:]
    runs = re.search(r"Done (\d+) runs", output)
    assert runs is not None
    print(f"{target}: {int(runs[1]):,} runs in {SECONDS} s")
    assert int(runs[1]) > 100
