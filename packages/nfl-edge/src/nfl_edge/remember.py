"""Keep a part of what a device's samples file held before it was replaced. Only the trainer process imports this.

A file of samples is replaced as a whole, and what it no longer holds would be forgotten by the next micro-updates. So a
checkpoint carries a bounded memory: training samples, with the answers of the model that learned them, and, apart from
them, holdout samples, so that a merge is still judged by samples that were never trained on.

Rules kept here:

* The memory is part of the checkpoint: it is saved, rolled back and lost with it; equal requests give equal bytes.
* What the present file still holds is not replayed: as long as the file is the same, learning is the same, bit for bit.
* It never leaves the device.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from nfl_core.config import LearningSection, ModelSection
from nfl_core.errors import DurableError
from nfl_core.learning.continual import (
    Augment,
    ModelIdentity,
    Rehearsal,
    RehearsalSettings,
    ReplayBuffer,
    ReplayState,
    bytes_for,
    shift,
    shift_and_flip,
)
from nfl_core.learning.learner import NestedLearner
from nfl_core.learning.merge import Samples
from nfl_core.learning.model import NestedModel
from nfl_edge.store import Arrays

_LOG = logging.getLogger(__name__)
_HOLDOUT_SHARE = 4  # one byte in four: holdout samples are fewer, and they have no answers
_FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)
_AUGMENTS: dict[str, Augment | None] = {"none": None, "shift": shift, "shift-flip": shift_and_flip}


@dataclass(slots=True, kw_only=True)
class Memory:
    """What a device remembers of files that are gone.

    Attributes:
        train: Training samples; None: the memory is off or too small for one sample of this model.
        holdout: Holdout samples, never trained on; None likewise.
        settings: How remembered samples take part in training.
    """

    train: ReplayBuffer | None
    holdout: ReplayBuffer | None
    settings: RehearsalSettings

    @classmethod
    def of(cls, section: LearningSection, model: ModelSection, *, identity: ModelIdentity, seed: int) -> Self:
        """Return an empty memory, as the section `learning` asks for."""
        share = section.replay_bytes // _HOLDOUT_SHARE
        bounds = (section.replay_bytes - share, share)
        least = bytes_for(1, tuple(model.input_shape), num_classes=model.num_classes, dtype=_FLOAT32)
        if section.replay_bytes and share < least:
            _LOG.warning(
                "learning.replay_bytes is %d, too few for this model: nothing is remembered; %d or more would do",
                section.replay_bytes,
                _HOLDOUT_SHARE * least,
            )
        buffers = [
            ReplayBuffer(
                max_bytes=max_bytes,
                input_shape=tuple(model.input_shape),
                num_classes=model.num_classes,
                identity=identity,
                salt=seed,
            )
            if share >= least
            else None
            for max_bytes in bounds
        ]
        augment = _AUGMENTS[section.replay_augment]
        settings = RehearsalSettings(num_replayed=section.batch_size, augment=augment)
        return cls(train=buffers[0], holdout=buffers[1], settings=settings)

    def load(self, arrays: Arrays, text: str, *, identity: ModelIdentity) -> None:
        """Take what a checkpoint carries; a memory that is off takes nothing.

        Raises:
            DurableError: It is no memory.
            ReplayMismatchError: It belongs to a model of another schema.
        """
        if not text or self.train is None or self.holdout is None:
            return
        try:
            texts = json.loads(text)
            states = [ReplayState(arrays=_part(arrays, f"{name}/"), text=texts[name]) for name in ("train", "holdout")]
        except (ValueError, KeyError, TypeError) as error:
            raise DurableError(f"the memory of a checkpoint cannot be read: {error!r}") from error
        self.train = ReplayBuffer.restore(states[0], max_bytes=self.train.max_bytes)
        self.holdout = ReplayBuffer.restore(states[1], max_bytes=self.holdout.max_bytes)
        if self.train.adopt(identity):
            _LOG.warning("remembered answers are of another version than %d: dropped, labels kept", identity.version)
        self.holdout.adopt(identity)

    def save(self) -> tuple[Arrays, str]:
        """Return everything as named arrays and a JSON object; nothing when the memory is off."""
        if self.train is None or self.holdout is None:
            return {}, ""
        states = {"train": self.train.state_dict(), "holdout": self.holdout.state_dict()}
        arrays = {f"{part}/{name}": array for part, state in states.items() for name, array in state.arrays.items()}
        return arrays, json.dumps({part: state.text for part, state in states.items()}, sort_keys=True)

    def rehearse(self, learner: NestedLearner, present: Samples) -> bool:
        """Let `learner` replay what the present training samples lack; say whether there is any."""
        places = self._lacking(self.train, present)
        if self.train is None or not len(places):
            return False
        learner.objective = Rehearsal(self.train, generator=learner.generator, settings=self.settings, among=places)
        return True

    def with_lost_train(self, present: Samples) -> Samples:
        """Return the present training samples and the remembered ones that are not among them."""
        return self._together(self.train, present)

    def with_lost_holdout(self, present: Samples) -> Samples:
        """Return the present holdout samples and the remembered ones that are not among them."""
        return self._together(self.holdout, present)

    def offer(self, module: NestedModel, *, train: Samples, holdout: Samples) -> None:
        """Remember a part of the present samples, with what `module` answers now to those that are new."""
        if self.train is None or self.holdout is None:
            return
        self.train.offer(train.x, train.y)
        self.holdout.offer(holdout.x, holdout.y)
        self._answer(module)

    def move(self, module: NestedModel, identity: ModelIdentity) -> None:
        """Belong to the version that was merged into `module`, and remember its answers instead of the old ones."""
        if self.train is None or self.holdout is None:
            return
        self.train.adopt(identity)
        self.holdout.adopt(identity)
        self._answer(module)

    def _answer(self, module: NestedModel) -> None:
        assert self.train is not None  # asked by both callers
        places = self.train.unanswered
        if len(places):
            with torch.no_grad():
                logits = module.generic(module.features(self.train.take(places).x))
            if bool(torch.isfinite(logits).all()):
                self.train.refresh(logits, places=places)

    @staticmethod
    def _lacking(buffer: ReplayBuffer | None, present: Samples) -> torch.Tensor:
        if buffer is None or not len(buffer):
            return torch.zeros(0, dtype=torch.int64)
        return buffer.outside(present.x, present.y)

    def _together(self, buffer: ReplayBuffer | None, present: Samples) -> Samples:
        places = self._lacking(buffer, present)
        if buffer is None or not len(places):
            return present
        lost = buffer.take(places)
        return Samples(x=torch.cat([present.x, lost.x]), y=torch.cat([present.y, lost.y]))


def _part(arrays: Arrays, prefix: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
