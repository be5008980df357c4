"""What the learning benchmark runs: `quick` for a first look, `full` for every claim of the documentation.

A plan is a list of sections; a section is one table: some scenes, some methods, one question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nfl_core.errors import NotFoundError
from nfl_sim.learning.methods import method_of
from nfl_sim.learning.scenes import scene_of

_RANGE = ("dir-0.05", "dir-0.1", "dir-0.5", "dir-5", "iid")
_ALWAYS = ("nested", "local", "fedavg-ft")  # never one without the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table.

    Attributes:
        title: What it asks.
        scenes: Columns.
        methods: Rows.
    """

    title: str
    scenes: tuple[str, ...]
    methods: tuple[str, ...]

    def runs(self, seeds: Sequence[int]) -> list[tuple[str, str, int]]:
        """Return (scene, method, seed) of all runs, seed by seed, so that a cut run has whole seeds."""
        return [(scene, method, seed) for seed in seeds for scene in self.scenes for method in self.methods]


PLANS: Mapping[str, tuple[Section, ...]] = {
    "quick": (
        Section(title="Few or many classes an owner", scenes=("dir-0.1", "dir-5"), methods=(*_ALWAYS, "fedrep")),
    ),
    "full": (
        Section(
            title="One default over the whole range of owners",
            scenes=_RANGE,
            methods=(*_ALWAYS, "fedrep", "fedala", "ditto", "fedper", "fedrod", "fedbabu", "fedprox-ft", "fedavg"),
        ),
        Section(
            title="What the server's momentum brings, to ours and to the published methods",
            scenes=("dir-0.1", "dir-0.5", "dir-5"),
            methods=(
                *_ALWAYS,
                "nested-no-momentum",
                "fedavg-ft-momentum",
                "fedrep",
                "fedrep-momentum",
                "fedala",
                "fedala-momentum",
            ),
        ),
        Section(
            title="What a regional level brings",
            scenes=("rotated", "renamed", "lighting", "dir-0.5", "dir-5"),
            methods=(*_ALWAYS, "three-fixed", "three-senses", "all-learned", "two-levels", "two-regional", "fedrep"),
        ),
        Section(
            title="Which period a level should have",
            scenes=("dir-0.5", "rotated"),
            methods=("nested", "period-1-1-2", "period-1-2-4", "period-1-4-8", "period-1-2-4-mean"),
        ),
        Section(
            title="Bytes",
            scenes=("dir-0.1", "dir-5"),
            methods=(
                "fedavg",
                "nested",
                "bits-2",
                "bits-2-sealed",
                "bits-2-no-feedback",
                "bits-2-half",
                "bits-2-sync-2",
                "bits-2-sync-4",
                "bits-2-sealed-sync-2",
            ),
        ),
        Section(
            title="Beside published figures",
            scenes=("published-dir", "published-2"),
            methods=(*_ALWAYS, "fedrep"),
        ),
    ),
}


def plan_of(name: str, *, only_scenes: Sequence[str] = (), only_methods: Sequence[str] = ()) -> tuple[Section, ...]:
    """Return the sections of a plan, cut to some scenes and methods where such are named.

    Raises:
        NotFoundError: No plan, scene or method has that name.
    """
    if name not in PLANS:
        raise NotFoundError(f"no plan {name!r}, there are {', '.join(PLANS)}")
    for scene in only_scenes:
        scene_of(scene)
    for method in only_methods:
        method_of(method)
    cut = (
        Section(
            title=section.title,
            scenes=tuple(scene for scene in section.scenes if not only_scenes or scene in only_scenes),
            methods=tuple(method for method in section.methods if not only_methods or method in only_methods),
        )
        for section in PLANS[name]
    )
    return tuple(section for section in cut if section.scenes and section.methods)
