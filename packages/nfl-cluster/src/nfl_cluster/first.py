"""The first version of a fleet: the model as it is before anybody has learned anything, the same in every region.

It imports torch, so it runs in a process of its own or once at the root's first start.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from nfl_cluster.service import SiteFolder, utc_now
from nfl_core.config import FleetConfig
from nfl_core.ids import RegionId, VersionId
from nfl_ota import MergeSettings, ProbationLimits, Repository, build_bundle

FIRST = VersionId(1)
_SEED = 0


def regions_of(config: FleetConfig) -> tuple[RegionId, ...]:
    """Return the regions of a fleet, sorted."""
    return tuple(sorted({RegionId(leaf.region) for leaf in config.leaves}))


def merge_settings(config: FleetConfig) -> MergeSettings:
    """Return how devices merge this fleet's versions."""
    return MergeSettings(refit_steps=config.learning.refit_steps, refit_learning_rate=config.learning.learning_rate)


def probation_limits(config: FleetConfig) -> ProbationLimits:
    """Return what devices hold this fleet's versions to."""
    return ProbationLimits(
        latency_budget_ms=config.edge.latency_budget_ms,
        num_inferences=config.edge.probation_inferences,
        max_accuracy_drop=config.edge.max_accuracy_drop,
    )


def seed_first_version(
    config: FleetConfig, folder: SiteFolder, *, clock: Callable[[], datetime] = utc_now, seed: int = _SEED
) -> VersionId:
    """Publish version 1 in every region, unless something is published already.

    Args:
        config: Of the fleet.
        folder: The root's.
        clock: Now, aware.
        seed: Decides the initial weights.

    Returns:
        The newest published version.

    Raises:
        ConfigError: The model is not installed.
        StorageFullError: The disk is full; nothing was published.
    """
    from nfl_core.learning import create_model, export_graph, schema_of, state_of

    repository = Repository.create(folder.repository, folder.tuf_keys, clock)
    if repository.regions():
        return max(repository.versions(repository.regions()[0]))
    module = create_model(
        config.model.name, num_classes=config.model.num_classes, input_shape=config.model.input_shape, seed=seed
    )
    schema = schema_of(module, config.spec)
    state = state_of(module)
    shared = {tensor.name: state[tensor.name] for tensor in schema.shared}
    graph = export_graph(module, schema)
    bundles = [
        build_bundle(
            model=config.model.name,
            region=region,
            version=FIRST,
            spec=config.spec,
            schema=schema,
            tensors=shared,
            graph=graph,
            created_at=clock(),
            merge=merge_settings(config),
            probation=probation_limits(config),
        )
        for region in regions_of(config)
    ]
    repository.publish(bundles)
    return FIRST
