"""Carries a publication out: bundles, signatures, registry. Doing it twice gives the same versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import numpy as np

from nfl_cluster.brain.content import Content, Contents, Tensors
from nfl_cluster.brain.state import Plan, Step
from nfl_cluster.brain.store import RootStore
from nfl_cluster.first import merge_settings, probation_limits
from nfl_cluster.registry import Registry, VersionRow
from nfl_core.config import FleetConfig
from nfl_core.errors import DurableError, NotFoundError
from nfl_core.ids import Digest, RegionId, VersionId
from nfl_ota import GateResult, Repository, build_bundle

Accuracy = Callable[[bytes, Mapping[RegionId, Tensors]], dict[RegionId, float]]
Bundles = dict[RegionId, tuple[bytes, dict[Digest, bytes]]]


class Publisher:
    """Publishes for the brain.

    Args:
        config: Of the fleet.
        store: The root's state.
        registry: Where versions are recorded.
        repository: Where they are published.
        contents: Reads that repository.
        clock: Now, aware.
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        store: RootStore,
        registry: Registry,
        repository: Repository,
        contents: Contents,
        clock: Callable[[], datetime],
    ) -> None:
        self._config, self._store, self._registry = config, store, registry
        self._repository, self._contents, self._clock = repository, contents, clock

    def next_version(self) -> int:
        """Return the number above every published and planned one."""
        plan = self._store.state.plan
        return 1 + max(self._newest(), plan.version if plan else 0)

    @staticmethod
    def number(plan: Plan) -> VersionId:
        """Return the version that a plan publishes."""
        return VersionId(plan.version)

    @staticmethod
    def version_id(version: int) -> VersionId:
        """Return a number as a version."""
        return VersionId(version)

    def candidate_tensors(self, candidate_id: str, running: Content) -> dict[RegionId, Tensors]:
        """Return a candidate's shared tensors by region. Raises NotFoundError or TensorFileError."""
        names = [tensor.name for tensor in running.schema.shared]
        result: dict[RegionId, Tensors] = {}
        for region in running.tensors:
            arrays = self._store.get_arrays("candidates", candidate_id, f"{region}.safetensors")
            result[region] = {name: arrays[name].astype(np.float32) for name in names}
        return result

    def bundle_bytes(self, tensors: Mapping[RegionId, Tensors], running: Content) -> dict[RegionId, int]:
        """Return what a device without any chunk would download, by region."""
        plan = Plan(version=self.next_version(), created_at=self._clock().isoformat())
        bundles = self._build(plan, tensors, running, gates=())
        return {
            region: len(manifest) + sum(len(chunk) for chunk in chunks.values())
            for region, (manifest, chunks) in bundles.items()
        }

    def publish(self, plan: Plan, *, accuracy: Accuracy) -> Step:
        """Put a plan into force.

        Args:
            plan: What to publish.
            accuracy: Measures content on held-out data.

        Returns:
            The version as a step of the path.

        Raises:
            StorageFullError: The disk is full; the old state stays in force.
            NotFoundError: What the plan names does not exist.
        """
        state = self._store.state
        running = self._contents.of(state.path[-1].version)
        if plan.restores is not None:
            if plan.version > self._newest():
                self._repository.publish_rollback(to=VersionId(plan.restores), version=VersionId(plan.version))
        else:
            bundles = self._build(plan, self._tensors(plan, running), running, gates=self._gates(plan))
            self._repository.publish(list(bundles.values()))
        content = self._contents.of(plan.version)
        step = Step(
            version=plan.version,
            digests={str(region): manifest.content_digest for region, manifest in content.manifests.items()},
            accuracy={str(region): value for region, value in accuracy(content.graph, content.tensors).items()},
        )
        self._record(plan, step, content)
        return step

    def adopt(self, *, accuracy: Accuracy) -> Step:
        """Return the newest published version as the first step of a path, and record it. Raises DurableError."""
        version = self._newest()
        if not version:
            raise DurableError("the repository holds no version", hint="run `nfl cluster init` first")
        content = self._contents.of(version)
        step = Step(
            version=version,
            digests={str(region): manifest.content_digest for region, manifest in content.manifests.items()},
            accuracy={str(region): value for region, value in accuracy(content.graph, content.tensors).items()},
        )
        self._record(Plan(version=version, created_at=self._clock().isoformat()), step, content)
        return step

    def _newest(self) -> int:
        regions = self._repository.regions()
        return max((version for region in regions for version in self._repository.versions(region)), default=0)

    def _tensors(self, plan: Plan, running: Content) -> Mapping[RegionId, Tensors]:
        if plan.candidate is not None:
            return self.candidate_tensors(plan.candidate, running)
        if plan.source is None:
            raise NotFoundError(f"the plan for version {plan.version} names no content")
        return self._contents.of(plan.source).tensors

    def _gates(self, plan: Plan) -> tuple[GateResult, ...]:
        candidate = self._store.state.candidate
        if candidate is not None and candidate.candidate_id == plan.candidate:
            return candidate.gates
        return ()

    def _build(
        self, plan: Plan, tensors: Mapping[RegionId, Tensors], running: Content, *, gates: tuple[GateResult, ...]
    ) -> Bundles:
        graph = running.graph
        if plan.graph is not None:
            replacement = self._store.get("graphs", plan.graph)
            if replacement is None:
                raise NotFoundError(f"the graph {plan.graph} of the plan for version {plan.version} is missing")
            graph = replacement
        return {
            region: build_bundle(
                model=self._config.model.name,
                region=region,
                version=VersionId(plan.version),
                spec=running.manifests[region].spec,
                schema=running.schema,
                tensors=mine,
                graph=graph,
                created_at=datetime.fromisoformat(plan.created_at),
                base=running.version,
                gates=gates,
                override=plan.override,
                merge=merge_settings(self._config),
                probation=probation_limits(self._config),
            )
            for region, mine in tensors.items()
        }

    def _record(self, plan: Plan, step: Step, content: Content) -> None:
        state = self._store.state
        base = state.path[-1].version if state.path else None
        self._registry.put_version(
            VersionRow(
                version=plan.version,
                base_version=base if base != plan.version else None,
                candidate_id=plan.candidate,
                restores=plan.restores,
                override_reason=plan.override,
                status="published",
                at=plan.created_at,
                digests=step.digests,
                targets={str(region): manifest.target_path for region, manifest in content.manifests.items()},
                accuracy=step.accuracy,
            )
        )
        if plan.restores is not None:
            for row in self._registry.versions():
                if plan.restores < row.version < plan.version:
                    self._registry.mark_rolled_back(row.version)
