"""What a task is: real data with natural owners, and the model and levels that learn them.

An owner is whoever the data came from (a speaker, a wearer, a robot), never a random share. Its samples are split once,
so that nothing of `test` was in `train` or `holdout`: not a recording, not a second of a recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfl_core.learning import LearningSettings, Samples
from nfl_core.levels import NestedSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOwner:
    """One owner's samples: x float32 [N, C, H, W], finite; y int64 [N].

    Attributes:
        name: Unique in the task, `^[a-z0-9][a-z0-9-]{0,62}$`: a device gets it.
        region: Owners of a region share the regional levels; the same rule for names.
        train: To learn from.
        holdout: To judge merges and probation with.
        test: Scored and never learned from.
    """

    name: str
    region: str
    train: Samples
    holdout: Samples
    test: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """All owners of a task; no sample belongs to two, or to two splits of one."""

    owners: tuple[TaskOwner, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that a fleet can learn.

    Attributes:
        name: Its folder below `nfl_sim.tasks`, and what `nfl task run` is given.
        title: One line for people.
        owner: What an owner is, in a word or two.
        regions: What makes a region, or why there is only one.
        model: Entry point of the group `nfl.models`.
        num_classes: Labels are below it.
        input_shape: (C, H, W) of one input.
        spec: Levels it is learned with.
        settings: Of learning on the device.
        rounds: Micro-updates an owner until the figures of its `expected.md`.
        load: Reads the data, given a folder that keeps files between runs and a generator that decides every chance of
            the split. Raises ContentError, which says how to get the data, when they are out of reach.
    """

    name: str
    title: str
    owner: str
    regions: str
    model: str
    num_classes: int
    input_shape: tuple[int, int, int]
    spec: NestedSpec
    settings: LearningSettings
    rounds: int
    load: Callable[[Path, np.random.Generator], TaskData]
