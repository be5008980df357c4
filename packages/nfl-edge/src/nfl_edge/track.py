"""Keep what a device knows of versions in its checkpoint. Only the trainer process imports this.

Rules kept here:

* The track is part of the checkpoint: it is saved, rolled back and lost with it, and it survives a restart.
* What was published is not written twice: mostly it is what the last merge accepted.
* A checkpoint from before there was a track has none, and nothing is held against its next version.
"""

from __future__ import annotations

import json
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nfl_core.errors import DurableError
from nfl_core.learning.plausible import Track
from nfl_edge.store import Arrays, Tensors, same_tensors

_PUBLISHED, _STEP = "published/", "step/"


def save_track(track: Track | None, *, accepted: Tensors) -> tuple[Arrays, str]:
    """Return a track as named arrays and a JSON object; nothing for none.

    Args:
        track: Of a device.
        accepted: Shared tensors that stand in the checkpoint anyway.
    """
    if track is None:
        return {}, ""
    arrays: Arrays = {_STEP + name: part for name, part in track.step.items()}
    is_apart = not same_tensors(track.published, accepted)
    if is_apart:
        arrays |= {_PUBLISHED + name: part for name, part in track.published.items()}
    said = {"version": track.version, "lengths": track.lengths, "contents": track.contents, "apart": is_apart}
    return arrays, json.dumps(said, sort_keys=True)


def load_track(arrays: Arrays, text: str, *, accepted: Tensors) -> Track | None:
    """Return what `save_track` wrote; None for nothing. Raises DurableError when it is no track of these tensors."""
    if not text:
        return None
    try:
        said = json.loads(text)
        published = _part(arrays, _PUBLISHED) if said["apart"] else accepted
        track = Track(
            published=cast("Tensors", published),
            version=int(said["version"]),
            step=cast("dict[str, NDArray[np.float16]]", _part(arrays, _STEP)),
            lengths=tuple(float(length) for length in said["lengths"]),
            contents=tuple(str(content) for content in said["contents"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DurableError(f"the track of a checkpoint cannot be read: {error!r}") from error
    shapes = {name: part.shape for name, part in accepted.items()}
    for part in (track.published, track.step):
        if part and {name: array.shape for name, array in part.items()} != shapes:
            raise DurableError("the track of a checkpoint is of other tensors than the model's")
    return track


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
