"""What the demo proves at its end, from what lies on its disks: exact sums, nothing lost, nothing private sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_core.config import FleetConfig
from nfl_core.errors import ConfigError, NotFoundError
from nfl_core.tensors import read_tensors
from nfl_edge.folder import DeviceFolder
from nfl_edge.link import read_tap
from nfl_sim.demo.report import Proof
from nfl_sim.demo.search import Patterns, count_planted, telling_row
from nfl_sim.demo.sums import bodies_of, check_sums
from nfl_sim.demo.witness import PRIVATE, PUT_IN, read_private

MAX_SAMPLES_BYTES = 256 * 1024 * 1024


def prove(home: Path, config: FleetConfig, *, taps: Path) -> Proof:
    """Check everything and return what was found; nothing is raised for a proof that fails.

    Args:
        home: Folder of the fleet; it may be running.
        config: Of the fleet.
        taps: Folder of what devices sent and put in.

    Raises:
        NflError: Something that the proof needs cannot be read.
    """
    folders = sorted(path for path in (home / "devices").iterdir() if path.is_dir())
    receipts = {name for folder in folders for name in _receipts(DeviceFolder(folder))}
    sums = check_sums(home, config, taps=taps, put_in=taps / PUT_IN, receipts=receipts)
    sent = {path.stem: read_tap(path) for path in sorted(taps.glob("*.tap"))}
    messages = [data for device in sent.values() for _, data in device]
    bodies = [body for device in sent.values() for _, body in bodies_of(device)]
    private = [values for folder in folders for values in read_private(taps / PRIVATE / f"{folder.name}.f32")]
    rows = [_rows(DeviceFolder(folder)) for folder in folders]
    patterns = Patterns.of(private=private, pixels=rows)
    control_found, control_planted = _control(bodies, private, rows)
    return Proof(
        batches=sums.batches,
        batches_exact=sums.batches_exact,
        contributions=sums.contributions,
        contributions_twice=sums.contributions_twice,
        sent_messages=len(messages),
        sent_bytes=sum(map(len, messages)),
        private_values=patterns.num_values,
        pixel_rows=patterns.num_rows,
        found=patterns.count_in([*messages, *bodies]),
        control_found=control_found,
        control_planted=control_planted,
        receipts=sums.receipts,
        receipts_counted=sums.receipts_counted,
        receipts_dropped=sums.receipts_dropped,
        receipts_waiting=sums.receipts_waiting,
        receipts_unaccounted=sums.receipts_lost,
    )


def _receipts(folder: DeviceFolder) -> Iterator[str]:
    if not folder.events.exists():
        return
    for line in folder.events.read_text(encoding="ascii").splitlines(keepends=True):
        event = json.loads(line) if line.endswith("\n") else {}
        if event.get("event") == "receipt":
            yield str(event["contribution"])


def _rows(folder: DeviceFolder) -> NDArray[np.uint8]:
    """Return all rows of pixels of a device, uint8 [R, W]. Raises ConfigError when its samples are no pixels."""
    arrays = read_tensors(folder.samples.read_bytes(), None, max_bytes=MAX_SAMPLES_BYTES)
    images = [values for name, values in sorted(arrays.items()) if name.endswith(".x")]
    if any(x.dtype != np.uint8 for x in images):
        raise ConfigError(f"samples of {folder.root.name} are {images[0].dtype}, the search is for pixels, uint8")
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in images]).astype(np.uint8)


def _control(bodies: list[bytes], private: list[NDArray[np.float32]], rows: list[NDArray[np.uint8]]) -> tuple[int, int]:
    """Plant leaks into a contribution that was really sent. Raises NotFoundError when nothing was sent or learned."""
    learned = [values for values in private if np.count_nonzero(values) >= len(values) // 2]
    if not bodies or not learned or not rows:
        raise NotFoundError("no contribution, no private values or no pixels on record: there is nothing to prove")
    return count_planted(bodies[0], private=learned[-1][:16], row=telling_row(rows[0]))
