"""Coverage-guided fuzzing of every decoder of ours; see fuzz.py for what each may do."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scale import LONG, SEED, count, patient

pytestmark = [pytest.mark.slow, patient]

TARGETS = ("frames", "chunks", "neutral", "token", "settings")
SECONDS = count(60, 1800)

# Set where atheris is among the tests' tools, so that its absence is no reason to skip there. It
# has wheels for these machines only.
REQUIRED = "FUZZING_REQUIRED"
HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64"


def test_fuzzer_is_there_where_it_should_be():
    if HAS_WHEEL and os.environ.get(REQUIRED):
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


@pytest.mark.skipif(
    not importlib.util.find_spec("atheris"),
    reason="NOT FUZZED: atheris is not installed (it is in tox's environment `coverage`)",
)
def test_decoders_take_whatever_comes(tmp_path):
    """In the short form all at once; in the long one two, each with a core."""
    together = [TARGETS[i : i + 2] for i in range(0, len(TARGETS), 2)] if LONG else [TARGETS]
    for targets in together:
        processes = {target: start(target, tmp_path) for target in targets}
        try:
            for target, process in processes.items():
                output, _ = process.communicate(timeout=SECONDS + 50)
                assert process.returncode == 0, output[-5000:]
                runs = re.search(r"Done (\d+) runs", output)
                assert runs is not None
                print(f"{target}: {int(runs[1]):,} runs in {SECONDS} s")
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
