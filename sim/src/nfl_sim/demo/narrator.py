"""Turn the journals' events into lines for the screen and marks for the page's time line."""

from __future__ import annotations

from datetime import datetime

from nfl_sim.demo.report import Moment
from nfl_sim.demo.screen import Screen
from nfl_sim.demo.watch import Event, FleetView

PUBLISHED, REFUSED, ROLLOUT, FAULTS = range(4)  # rows of the time line


class Narrator:
    """Tells one run of the demo.

    Args:
        screen: Where to.
        started_at: When the run began, UTC.
    """

    def __init__(self, screen: Screen, *, started_at: datetime) -> None:
        self._screen, self._started_at = screen, started_at
        self.moments: list[Moment] = []
        self._wave_at_s = 0.0

    def tell(self, event: Event, state: FleetView) -> None:
        """Say what happened, and mark it on the time line if it belongs there.

        Args:
            event: One line of a journal.
            state: The fleet as it is after it.
        """
        version = f"v{int(event.number('version'))}"
        if event.who != "root":
            if event.name == "fell-back":
                self._screen.say(
                    f"{event.who} falls back by itself from {version}: {event.text('why')}", style="bold red"
                )
            elif event.name == "agent-restarted":
                self._screen.say(f"{event.who} starts again after a fault: {event.text('why')}", style="red")
            return
        at_s = (event.at - self._started_at).total_seconds()
        match event.name:
            case "published":
                self._screen.say(
                    f"{version} published, signed{' (gates overridden)' if event.figures.get('override') else ''}",
                    style="bold green",
                )
                self.mark(at_s, PUBLISHED, "c-bad" if event.figures.get("override") else "c-nested", version)
            case "gate-refused":
                self._screen.say(
                    f"candidate refused by gate {event.text('gate')}: {event.text('why')}", style="bold red"
                )
                self.mark(at_s, REFUSED, "c-bad", event.text("gate").partition("-")[0])
            case "batch-bounded":
                self._screen.say(
                    f"batch {event.text('batch')[:8]} pushed down: norm {event.number('norm'):.2f}, "
                    f"bound {event.number('bound'):.2f}",
                    style="yellow",
                )
            case "wave-opened":
                self._screen.say(f"{version}: wave of {100 * event.number('fraction'):.0f} %")
                if event.number("fraction") < 1 or event.number("version") == 1:
                    self._wave_at_s = at_s
            case "rollout-halted":
                self._screen.say(f"{version} halted: {event.text('why')}", style="bold red")
                self.mark(self._wave_at_s, ROLLOUT, "c-bad", f"{version} halted", until_s=at_s)
            case "rolled-back":
                text = f"{version} rolled back: v{event.text('new_version')} brings v{event.text('to')} back"
                self._screen.say(text, style="yellow")
                self._wave_at_s = at_s
            case "rollout-complete":
                self._screen.say(f"{version} is on all devices", style="green")
                is_restored = int(event.number("version")) in state.restoring
                self.mark(self._wave_at_s, ROLLOUT, "c-shared", "back" if is_restored else version, until_s=at_s)
            case _:
                return

    def fault(self, at_s: float, label: str, text: str) -> None:
        """Tell a fault that the demo makes itself."""
        self.mark(at_s, FAULTS, "c-bad", label)
        self._screen.say(text, style="bold red")

    def mark(self, at_s: float, row: int, css: str, label: str, *, until_s: float | None = None) -> None:
        """Put a mark, or a span, on the time line."""
        self.moments.append(Moment(at_s=max(0.0, at_s), row=row, css=css, label=label, until_s=until_s))
