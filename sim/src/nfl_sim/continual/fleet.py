"""A fleet whose world grows: owners join over versions, and every owner's file is replaced when new classes arrive.

Phase by phase, an owner's file holds the classes of that phase alone. Each version: every owner that joined learns its
file (with a memory: and replays what the file lost), shared levels are averaged, and every owner merges and refits.
The pieces are the device's own: `micro_update`, `Rehearsal`, `refit`; averaging is plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nfl_core.learning import (
    LearningSettings,
    NestedLearner,
    Samples,
    cache_features,
    create_model,
    default_spec,
    displacement,
    joint_loss,
    label_prior,
    load_state,
    micro_update,
    refit,
    schema_of,
    score,
    state_of,
    weighted_mean,
)
from nfl_core.learning.continual import (
    ModelIdentity,
    Rehearsal,
    RehearsalSettings,
    ReplayBuffer,
    bytes_for,
)
from nfl_sim.continual.split import samples_of
from nfl_sim.data.fashion import DataSet

PHASES = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
VERSIONS_PER_PHASE = 3
JOINS = (0,) * 6 + (3,) * 2 + (6,) * 2  # versions after which owners join
SETTINGS = LearningSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Accuracies of the personal models on test images of all classes their owner has seen, 0 to 1, one an owner.

    Attributes:
        before_merge: After the owner's own learning.
        after_merge: After merge and refit.
        oldest: After merge and refit, on the classes of the first phase its owner saw alone.
    """

    before_merge: tuple[float, ...]
    after_merge: tuple[float, ...]
    oldest: tuple[float, ...]


class _Owner:
    def __init__(self, *, seed: int, place: int, remembers: int) -> None:
        self.module = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=seed)
        spec = default_spec()
        self.schema = schema_of(self.module, spec)
        self.learner = NestedLearner(
            self.module,
            spec=spec,
            settings=SETTINGS,
            generator=torch.Generator().manual_seed(100 * seed + place),
        )
        self.memory = ReplayBuffer(
            max_bytes=bytes_for(max(1, remembers), (1, 28, 28), num_classes=10),
            input_shape=(1, 28, 28),
            num_classes=10,
            identity=ModelIdentity(schema_fingerprint=self.schema.fingerprint, version=0),
            salt=place,
        )
        self.remembers = remembers > 0
        self.seen: list[Samples] = []  # test samples of each phase

    def together(self, present: Samples) -> Samples:
        """Return the present samples and those that only the memory still has."""
        lost = self.memory.take(self.memory.outside(present.x, present.y))
        return Samples(x=torch.cat([present.x, lost.x]), y=torch.cat([present.y, lost.y]))

    def learn(self, present: Samples) -> None:
        places = self.memory.outside(present.x, present.y)
        self.learner.objective = joint_loss
        if self.remembers and len(places):
            settings = RehearsalSettings(num_replayed=SETTINGS.batch_size)
            self.learner.objective = Rehearsal(
                self.memory, generator=self.learner.generator, settings=settings, among=places
            )
        micro_update(self.learner, present.x, present.y, prior=label_prior(present.y, num_classes=10), refit_steps=0)
        self.refit(present)
        if self.remembers:
            self.memory.offer(present.x, present.y)
            self.answer()

    def refit(self, present: Samples) -> None:
        samples = self.together(present)
        refit(
            self.module,
            cache_features(self.module, samples.x, samples.y),
            num_steps=SETTINGS.num_refit_steps(len(samples.y)),
            batch_size=SETTINGS.batch_size,
            learning_rate=SETTINGS.refit_learning_rate,
            generator=self.learner.generator,
        )

    def answer(self) -> None:
        """Keep what the model answers now, for all that is remembered."""
        if len(self.memory):
            kept = self.memory.take(torch.arange(len(self.memory)))
            with torch.no_grad():
                self.memory.refresh(self.module.generic(self.module.features(kept.x)))

    def accuracy(self, phases: slice = slice(None)) -> float:
        tests = self.seen[phases]
        return score(self.module, torch.cat([t.x for t in tests]), torch.cat([t.y for t in tests])).accuracy


def run_fleet(
    data: DataSet, *, seed: int, remembers: int, joins: Sequence[int] = JOINS, num_train: int = 90, num_test: int = 60
) -> list[Version]:
    """Let a fleet live through all phases.

    Args:
        data: Images of ten classes.
        seed: Draws images and everything else.
        remembers: Images an owner keeps of files that are gone; 0: none.
        joins: Version after which each owner joins; 0 is the start.
        num_train: Images of one owner's file.
        num_test: Test images of one owner and phase.
    """
    draw = np.random.default_rng(seed)
    published = None
    owners: list[_Owner] = []
    files: list[Samples] = []
    history: list[Version] = []
    for version in range(VERSIONS_PER_PHASE * len(PHASES)):
        joined = [place for place, since in enumerate(joins) if since == version]
        for place in joined:
            owner = _Owner(seed=seed, place=place, remembers=remembers)
            if published is not None:
                load_state(owner.module, published, partial=True)
            owners.append(owner)
        if version % VERSIONS_PER_PHASE == 0:
            files = [
                _phase(data, draw, owner, PHASES[version // VERSIONS_PER_PHASE], num_train, num_test)
                for owner in owners
            ]
        accepted = [state_of(owner.module) for owner in owners]
        for owner, file in zip(owners, files, strict=True):
            owner.learn(file)
        before = tuple(owner.accuracy() for owner in owners)
        schema = owners[0].schema
        moved = [displacement(old, state_of(o.module), schema) for old, o in zip(accepted, owners, strict=True)]
        mean = weighted_mean(moved, [1.0] * len(owners))
        published = {name: accepted[0][name] + mean[name] for name in mean}
        for owner, file in zip(owners, files, strict=True):
            load_state(owner.module, published, partial=True)
            owner.learner.accept()
            owner.refit(file)
            owner.answer()
        history.append(
            Version(
                before_merge=before,
                after_merge=tuple(owner.accuracy() for owner in owners),
                oldest=tuple(owner.accuracy(slice(0, 1)) for owner in owners),
            )
        )
    return history


def _phase(
    data: DataSet, draw: np.random.Generator, owner: _Owner, classes: tuple[int, ...], num_train: int, num_test: int
) -> Samples:
    """Give an owner the images of a phase: returns the file, keeps the test samples."""
    places = draw.permutation(np.flatnonzero(np.isin(data.y_N, classes)))[: num_train + num_test]
    owner.seen.append(samples_of(data, places[num_train:]))
    return samples_of(data, places[:num_train])
