"""Tell the demo live: a screen on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typing_extensions import Self

from nfl_sim.demo.watch import DeviceView, FleetView

# A letter beside each colour: nothing is told by colour alone.
_LOOKS = {
    "starting": ("s", "dim"),
    "waiting": ("-", "green"),
    "fetching": ("f", "cyan"),
    "probation": ("p", "yellow"),
    "refused": ("x", "red"),
    "learned": ("l", "blue"),
    "sending": ("u", "magenta"),
    "fell back": ("B", "bold red"),
    "fault": ("!", "bold red"),
    "leaf away": ("?", "yellow"),
}
_LEGEND = (
    "s starting  - at rest  f fetching  p probation  l learned  u sending  "
    "B fell back  ? leaf away  x merge refused  ! fault"
)
LINES = 12


class Screen:
    """What people see while the demo runs. Use as a context manager.

    Args:
        console: Where to (stderr: the table in the end is the result).
        clock: Monotonic seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._started = console, clock, clock()
        self._lines: deque[Text] = deque(maxlen=LINES)
        self._view = FleetView()
        self._live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._render) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, *, style: str = "") -> None:
        """Tell one thing that happened."""
        stamp = f"{self._clock() - self._started:6.1f} s  "
        if self._live is None:
            self._console.print(stamp + text, markup=False, highlight=False, soft_wrap=True)
        self._lines.append(Text(stamp + text, style=style, no_wrap=True, overflow="ellipsis"))

    def show(self, view: FleetView) -> None:
        """Show the fleet as it is now."""
        self._view = view

    def _render(self) -> RenderableType:
        return Group(
            Panel(
                _fleet(self._view),
                title=f"fleet after {self._clock() - self._started:.0f} s",
                subtitle=_LEGEND,
                border_style="dim",
            ),
            Panel(Group(*self._lines), title="what happens", border_style="dim"),
        )


def _fleet(view: FleetView) -> RenderableType:
    devices = Text()
    for name, device in view.devices.items():
        letter, style = _looks(device)
        devices.append(f" {name[-2:]}:{letter}{device.version or ' '}", style=style)
    accuracies = view.accuracies()
    table = Table.grid(padding=(0, 2))
    table.add_row("devices (id:state version)", devices)
    if accuracies:
        mean, worst = 100 * sum(accuracies) / len(accuracies), 100 * min(accuracies)
        table.add_row("accuracy on own test images", f"mean {mean:.1f} %   worst {worst:.1f} %")
    versions = (
        f"published {len(view.published)}   refused {len(view.refused)}   "
        f"rolled back {len(view.rolled_back)}   batches bounded {len(view.bounded)}"
    )
    table.add_row("versions", versions)
    table.add_row(
        "micro-updates, receipts",
        f"{sum(d.num_updates for d in view.devices.values())}, {sum(d.num_receipts for d in view.devices.values())}",
    )
    return table


def _looks(device: DeviceView) -> tuple[str, str]:
    return _LOOKS.get(device.mood, ("-", "green"))
