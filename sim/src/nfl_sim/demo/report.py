"""What is left of a demo: figures, as `report.json`, and a table for the terminal.

These keys are a contract: `seconds`, `peak_rss_mb`, `accuracy`, `bytes_up_per_device_per_version`, `bytes_fp32` and
`versions`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.table import Table

NUM_SETTLED = 3  # rounds that a device's final accuracy is averaged over, the same for every learner


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Accuracy(_Part):
    """Accuracy on the devices' own test images, as fractions: of the mean and of the worst device."""

    mean: float
    worst: float

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> Accuracy:
        """Return mean and worst of at least one accuracy."""
        return cls(mean=sum(accuracies) / len(accuracies), worst=min(accuracies))


def settled(rounds: Sequence[Sequence[float]]) -> Accuracy:
    """Return mean and worst of the devices' accuracies, each device's averaged over the last rounds.

    A device has 50 test images or more: in one round, the worst device is whoever had bad luck.

    Args:
        rounds: At least one; each has one accuracy a device, devices in the same order.
    """
    return Accuracy.of([sum(device) / len(device) for device in zip(*rounds[-NUM_SETTLED:], strict=True)])


class Accuracies(_Part):
    """Of the nested learners, and of those that learn alone and that share everything, on the same data and steps."""

    nested: Accuracy
    local: Accuracy
    shared: Accuracy


class Versions(_Part):
    """How many versions were published through gates and waves, candidates refused, versions rolled back."""

    published: int
    refused: int
    rolled_back: int


class Moment(_Part):
    """One thing that happened: seconds since the start, a row of the time line, its colour class, for people."""

    at_s: float
    row: int
    css: str
    label: str
    until_s: float | None = None


class Round(_Part):
    """Accuracies after one micro-update of everybody: all devices' fractions."""

    number: int
    nested: list[float]
    local: list[float]
    shared: list[float]


class Proof(_Part):
    """What was shown beyond doubt.

    Attributes:
        batches: Batches whose sum the root opened.
        batches_exact: Those whose sum equals, as integers, the sum of what the devices put in.
        contributions: Contributions in them.
        contributions_twice: Contributions that stand in more than one of them; must be 0.
        sent_messages: Messages of all devices that were searched.
        sent_bytes: Their bytes.
        private_values: Private-level values that were searched for.
        pixel_rows: Rows of pixels that were searched for.
        found: Hits; must be 0.
        control_found: Leaks that were found after they had been planted; must be all of `control_planted`.
        control_planted: Leaks that were planted, one of each form.
        receipts: Receipts that devices hold.
        receipts_counted: Of contributions in a batch that went into a candidate or will.
        receipts_dropped: Of contributions in a batch that was dropped, by name and with the reason.
        receipts_waiting: Of contributions in a batch that is on its way.
        receipts_unaccounted: All others; must be 0.
    """

    batches: int
    batches_exact: int
    contributions: int
    contributions_twice: int
    sent_messages: int
    sent_bytes: int
    private_values: int
    pixel_rows: int
    found: int
    control_found: int
    control_planted: int
    receipts: int
    receipts_counted: int
    receipts_dropped: int
    receipts_waiting: int
    receipts_unaccounted: int

    @property
    def holds(self) -> bool:
        """Say whether everything was shown."""
        exact = self.batches > 0 and self.batches_exact == self.batches and self.contributions_twice == 0
        controlled = self.control_planted > 0 and self.control_found == self.control_planted
        return exact and controlled and self.found == 0 and self.receipts > 0 and self.receipts_unaccounted == 0


class Report(_Part):
    """The whole of `report.json`.

    Attributes:
        seconds: From the first step to the last, without the set-up of the environment.
        peak_rss_mb: Largest resident memory of the whole process tree, MB.
        bytes_up_per_device_per_version: All that a device sends, headers and polls included, a contribution.
        bytes_contribution: One sealed contribution with its envelope.
        bytes_fp32: The shared levels as float32.
    """

    seconds: float
    peak_rss_mb: float
    accuracy: Accuracies
    bytes_up_per_device_per_version: float
    bytes_contribution: float
    bytes_fp32: int
    versions: Versions
    devices: int
    data: str
    seed: int
    rounds: list[Round]
    moments: list[Moment]
    restarts: list[str]
    batches_bounded: int
    proof: Proof


def table_of(report: Report) -> Table:
    """Return the table that ends the demo."""
    table = Table(title=f"{report.devices} devices, {report.data}, {report.seconds:.0f} s", title_justify="left")
    for heading in ("", "nested", "local only", "shared only"):
        table.add_column(heading, justify="left" if not heading else "right")
    learners = (report.accuracy.nested, report.accuracy.local, report.accuracy.shared)
    table.add_row("accuracy, mean device", *(f"{100 * learner.mean:.1f} %" for learner in learners))
    table.add_row("accuracy, worst device", *(f"{100 * learner.worst:.1f} %" for learner in learners))
    sent, whole = report.bytes_up_per_device_per_version / 1000, report.bytes_fp32 / 1000
    table.add_row("kB up a device and version", f"{sent:.1f}", "0", f"{whole:.1f} (fp32)", end_section=True)
    versions, proof = report.versions, report.proof
    table.add_row(
        "versions",
        f"{versions.published} published",
        f"{versions.refused} refused",
        f"{versions.rolled_back} rolled back",
    )
    table.add_row(
        "sums exact", f"{proof.batches_exact} of {proof.batches} batches", f"{proof.contributions} contributions", ""
    )
    table.add_row("private values or pixels sent", str(proof.found), f"{proof.sent_messages} messages", "searched")
    table.add_row("memory of all processes", f"{report.peak_rss_mb / 1000:.2f} GB", "", "")
    return table
