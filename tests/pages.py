"""The fenced blocks of README.md and docs/, and a reader who follows them to the letter.

- ```console  lines that begin with `$ ` are commands, run one by one in a fresh home; what stands
              below one is its output. `name$ ` is another machine, with a home of its own.
              `genrpc serve` and `envoy` go on in the background: they have run when ready.
- ```python, ```toml, …  with a first line `# name.py`, or `# name.py on machine`: that file; in
              languages that want it, `// name.js`. Another ```python is a program, run at once;
              the comment at the end of a line with a print is what it prints.

In outputs, `…` stands for anything, alone in a line for any lines. White space does not count.
"""

import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
"""Where commands are found: those of this environment first."""

SECONDS = 50.0
"""A command that has not ended by then, or is not ready, never will; unless more is asked for."""


_FILE = r"[\w./-]+\.(?:py|toml|yaml|mjs|rb|java)"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line where it begins, the heading above it."""

    language: str
    text: str
    line: int
    heading: str

    @property
    def file(self) -> tuple[str, str] | None:
        """The machine and the name of the file that it is, if it says so."""
        found = re.match(rf"(?:#|//) ({_FILE})(?: on (\w+))?\n", self.text)
        return (found[2] or "", found[1]) if found else None


def blocks(page: Path) -> Iterator[Block]:
    """Give the fenced blocks of a page, in order."""
    heading, opened = "", None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is not None:
            if line == "```":
                yield Block(opened[0], "".join(f"{text}\n" for text in lines), opened[1], heading)
                opened, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("```"):
            opened = line.removeprefix("```"), number
        elif line.startswith("## "):
            heading = line.removeprefix("## ")
    assert opened is None, f"{page.name}: the block of line {opened[1]} does not end"


def sections(page: Path) -> dict[str, list[Block]]:
    """Give the blocks of a page by the headings above them; "" is above the first."""
    found: dict[str, list[Block]] = {}
    for block in blocks(page):
        found.setdefault(block.heading, []).append(block)
    return found


@dataclass(frozen=True)
class Command:
    """One command of a console block and the output that is shown below it."""

    machine: str
    text: str
    output: list[str]


def commands(block: Block) -> Iterator[Command]:
    """Give the commands of a console block."""
    machine, text = "", ""
    output: list[str] = []
    for line in block.text.splitlines():
        prompt = re.match(r"(\w*)\$ ", line)
        if text.endswith("\\") and not output:
            text = text.removesuffix("\\") + line.strip()
        elif prompt:
            if text:
                yield Command(machine, text, output)
            machine, text, output = prompt[1], line[prompt.end() :], []
        else:
            assert text, f"output without a command: {line}"
            output.append(line)
    yield Command(machine, text, output)


class Reader:
    """Follows a page, in a folder of his own; to be used with `with`.

    `hosts` are the machines by the addresses that the page has for them. They are run on
    addresses of loopback; only copying from one to another is not done by the real program.
    `ports` are those of the page that others may listen on here: they become free ones.
    """

    def __init__(
        self,
        folder: Path,
        hosts: dict[str, str] | None = None,
        *,
        ports: Iterable[str] = (),
        seconds: float = SECONDS,
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._exported: dict[str, dict[str, str]] = {}
        self._running: list[Background] = []
        # Addresses that no other test has, since the machines want the default port.
        network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        self._addresses = {
            address: f"{network}.{number}" for number, address in enumerate(hosts or {}, start=1)
        }
        self._ports = {port: str(free_port()) for port in ports}
        (folder / "bin").mkdir()
        if hosts:
            self._make_scp(hosts)

    def _make_scp(self, hosts: dict[str, str]) -> None:
        homes = [
            f'{self._addresses[address]}) cp -rp "$3" \'{self.home(machine)}\'/"${{4#*:}}";;\n'
            for address, machine in hosts.items()
        ]
        scp = self._folder / "bin/scp"
        scp.write_text(f'#!/bin/sh\ncase "${{4%%:*}}" in\n{"".join(homes)}*) exit 1;;\nesac\n')
        scp.chmod(0o700)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in reversed(self._running):
            process.end()

    def home(self, machine: str = "") -> Path:
        """The home on a machine, in which all is done."""
        home = self._folder / f"home {machine}".strip()
        # 0700: the folders of the cookie and of the running nodes are refused otherwise.
        (home / ".run").mkdir(mode=0o700, parents=True, exist_ok=True)
        return home

    def environment(self, machine: str = "") -> dict[str, str]:
        """The environment of a fresh account on a machine."""
        home = self.home(machine)
        known = ("GENRPC_", "XDG_", "TOX_", "VIRTUAL_ENV", "PYTHONPATH", "PYTEST")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(known)}
        return {
            **kept,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / ".run"),
            "PATH": f"{self._folder / 'bin'}{os.pathsep}{PATH}",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "100",
            **self._exported.get(machine, {}),
        }

    def follow(self, block: Block) -> None:
        """Do what a block says, and see that what it shows is what happens."""
        if block.language == "console":
            for command in commands(block):
                self.run(command)
        elif block.file is not None:
            machine, name = block.file
            (self.home(machine) / name).write_text(self._here(block.text))
        elif block.language == "python":
            self._run_program(block)

    def run(self, command: Command) -> None:
        """Run one command."""
        text = self._here(command.text)
        environment = self.environment(command.machine)
        if text.startswith("export "):
            name, _, value = text.removeprefix("export ").partition("=")
            value = self._output(["bash", "-c", f"printf %s {value}"], command.machine)
            self._exported.setdefault(command.machine, {})[name] = value
            return
        if is_server(text):
            process = Background(text, self.home(command.machine), environment)
            self._running.append(process)
            output = process.wait_ready()
        else:
            output = self._output(["bash", "-c", text], command.machine)
        expect(output, [self._here(line) for line in command.output], f"$ {text}")

    def output_of(self, text: str) -> str:
        """Run commands that are to succeed; gives what they wrote."""
        ended = self._ended(["bash", "-c", text], "", subprocess.STDOUT)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def _run_program(self, block: Block) -> None:
        program = self.home() / f"program_{block.line}.py"
        program.write_text(block.text)
        lines = block.text.splitlines()
        shown = [found[1] for line in lines if (found := re.search(r"\bprint\(.*  # (.*)$", line))]
        ended = self._ended([sys.executable, program.name], "", subprocess.PIPE)
        assert ended.returncode == 0, ended.stderr
        expect(ended.stdout, shown, f"the program of line {block.line}")

    def _output(self, command: list[str], machine: str = "") -> str:
        return self._ended(command, machine, subprocess.STDOUT).stdout

    def _ended(
        self, command: list[str], machine: str, stderr: int
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.home(machine),
            env=self.environment(machine),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=self._seconds,
            check=False,
        )

    def _here(self, text: str) -> str:
        for address, here in self._addresses.items():
            text = text.replace(address, here)
        for port, here in self._ports.items():
            text = re.sub(rf"\b{port}\b", here, text)
        return text


class Background:
    """A command that goes on until it is ended."""

    def __init__(self, text: str, folder: Path, environment: dict[str, str]) -> None:
        self._text = text
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {text}" if "=" not in shlex.split(text)[0] else text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if line.startswith("  stop ") or "starting main dispatch loop" in line:
                self._ready.set()  # the last line of what `genrpc serve`, or Envoy, tells
        self._ready.set()

    def wait_ready(self) -> str:
        """Wait until it is ready; gives what it has written."""
        assert self._ready.wait(SECONDS), f"$ {self._text}\nis not ready: {self._lines}"
        return "".join(self._lines)

    def end(self) -> None:
        """End it and all that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reading.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        wrote = "".join(self._lines)
        assert not re.search("(?m)^Traceback ", wrote), f"$ {self._text}\nwrote:\n{wrote}"


def is_server(text: str) -> bool:
    """Tell whether a command goes on until it is ended."""
    words = [word for word in shlex.split(text) if "=" not in word or word.startswith("-")]
    return words[:2] == ["genrpc", "serve"] or words[0] == "envoy"


def free_port() -> int:
    """Give a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def expect(output: str, shown: list[str], what: str) -> None:
    """See that an output is as it is shown; nothing shown means nothing is asked."""
    told = f"{what}\n--- shown:\n" + "\n".join(shown) + f"\n--- but:\n{output}"
    assert not re.search("(?m)^Traceback ", output) or "Traceback" in "".join(shown), told
    if shown:
        pattern = "".join(_pattern(line) for line in shown)
        assert re.fullmatch(pattern, _squeezed(output) + "\n"), told


def _pattern(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    return ".*".join(map(re.escape, _squeezed(line).split("…"))) + r"\n"


def _squeezed(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.strip().splitlines())
    return "\n".join(line for line in lines if line)
