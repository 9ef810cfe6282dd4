"""What is redrawn on a terminal: the table of a multicall, and progress bars. Needs rich."""

from __future__ import annotations

import contextlib
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.spinner import Spinner
from rich.table import Table as RichTable
from rich.text import Text

from genrpc.cli import output
from genrpc.errors import BadRPC, BadTCP, Ok


class Table:
    """One row for each node: a spinner, then its outcome. Stays on the screen at the end."""

    def __init__(self, nodes: list[str]) -> None:
        self._nodes = nodes
        self._outcomes: list[Ok[object] | BadRPC | BadTCP | None] = [None] * len(nodes)
        self._spinner = Spinner("dots")
        self._live = Live(console=Console(), get_renderable=self._table, refresh_per_second=10)

    def __enter__(self) -> Table:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(BrokenPipeError):  # the terminal is gone
            self._live.stop()

    def show(self, number: int, outcome: Ok[object] | BadRPC | BadTCP) -> None:
        """Put an outcome in its row."""
        self._outcomes[number] = outcome
        self._live.refresh()

    def _table(self) -> RichTable:
        table = RichTable(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, outcome in zip(self._nodes, self._outcomes, strict=True):
            table.add_row(*self._row(name, outcome))
        return table

    def _row(
        self, name: str, outcome: Ok[object] | BadRPC | BadTCP | None
    ) -> tuple[Text | Spinner, Text, Text]:
        # Text, not str: what nodes send must not be read as markup.
        if outcome is None:
            return self._spinner, Text(name), Text("")
        if isinstance(outcome, Ok):
            return Text("✓", "green"), Text(name), Text(output.text_of(outcome.value))
        return Text("✗", "red"), Text(name), Text(output.headline_of(outcome), "red")


class Progress:
    """A bar on standard error that goes on by one step at a time, and leaves nothing behind."""

    def __init__(self, count: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description:<6}"), BarColumn())
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=count)
        self._is_first = True

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, name: str) -> None:
        """The next step begins; `name` is shown beside the bar."""
        self._bar.update(self._task, description=name, advance=0 if self._is_first else 1)
        self._is_first = False
