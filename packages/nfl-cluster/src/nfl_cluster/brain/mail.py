"""Posts what other sites have not heard yet: files of the repository, the rollout's state, the open policy.

Ids follow from content and receiver, and what was posted is noted afterwards: a crash between the two posts the same
message again, and its receiver drops it. Mail travels in the order of its ids: files, then the rollout, then the
round that is about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from nfl_cluster.aggregate.suspicion import RoundScores
from nfl_cluster.brain.intake import Intake
from nfl_cluster.brain.store import RootStore
from nfl_cluster.mailbox import Mailbox
from nfl_cluster.rollout import RolloutDriver
from nfl_core.config import FleetConfig, LeafSection
from nfl_core.ids import RegionId, SiteId, VersionId
from nfl_core.wire import sites_pb2
from nfl_ota import Phase, Repository

MAX_PART_BYTES = 16 * 1024 * 1024  # of repository files in one message, unless one file alone is larger
REFRESH_BEFORE = timedelta(hours=12)  # half of a timestamp's day: a root that is away for a night freezes nobody


class Postman:
    """Posts for the brain.

    Args:
        config: Of the fleet.
        mailbox: The root's.
        store: The root's state; what was sent is noted there.
        repository: Published versions.
        intake: Keeper of policies.
    """

    def __init__(
        self, config: FleetConfig, *, mailbox: Mailbox, store: RootStore, repository: Repository, intake: Intake
    ) -> None:
        self._config, self._mailbox, self._store = config, mailbox, store
        self._repository, self._intake = repository, intake

    def post_news(self, driver: RolloutDriver) -> None:
        """Post to every site what it has not been sent. Raises StorageFullError."""
        for leaf in self._config.leaves:
            site = SiteId(leaf.site)
            self._post_files(site)
            self._post_rollout(leaf, driver)
            self._post_policy(site)
            self._post_scores(site)
        self._post_policy(SiteId(self._config.keeper.site))

    def _post_files(self, site: SiteId) -> None:
        marker = self._repository.marker
        sent = self._sent(site, "repository")
        if sent >= marker:
            return
        for number, part in enumerate(_parts(self._repository.files_since(sent))):
            message_id = f"repository-{marker:012d}-{number:04d}-{site}"[:80]
            self._mailbox.post(site, "repository", part.SerializeToString(deterministic=True), message_id=message_id)
        self._note(site, "repository", marker)

    def _post_rollout(self, leaf: LeafSection, driver: RolloutDriver) -> None:
        number = self._store.state.rollout_number
        site, region = SiteId(leaf.site), RegionId(leaf.region)
        if self._sent(site, "rollout") >= number or not driver.version:
            return
        message = self._rollout(region, driver)
        message_id = f"rollout-{number:012d}-{site}"[:80]
        self._mailbox.post(site, "rollout", message.SerializeToString(deterministic=True), message_id=message_id)
        self._note(site, "rollout", number)

    def _rollout(self, region: RegionId, driver: RolloutDriver) -> sites_pb2.RolloutState:
        machine = driver.state.machine
        manifest = self._repository.manifest(region, VersionId(driver.version))
        message = sites_pb2.RolloutState(
            version=driver.version,
            region=region,
            bundle_target=manifest.target_path,
            digest=manifest.content_digest,
            wave_fraction=driver.fraction,
            halted=driver.phase is Phase.HALTED,
        )
        if machine.previous is not None:
            before = self._repository.manifest(region, VersionId(machine.previous))
            message.previous_target = before.target_path
            message.previous_version = machine.previous
            message.previous_digest = before.content_digest
        return message

    def _post_policy(self, site: SiteId) -> None:
        policy_id = self._store.state.policy_id
        if not policy_id or self._sent(site, "policy") >= policy_id:
            return
        signed = self._intake.policy(policy_id).signed
        self._mailbox.post(site, "policy", signed, message_id=f"round-{policy_id:012d}-{site}"[:80])
        self._note(site, "policy", policy_id)

    def _post_scores(self, site: SiteId) -> None:
        number = self._store.state.scores_number
        if self._sent(site, "scores") >= number:
            return
        scores = RoundScores(number=number, scores=self._store.state.scores)
        self._mailbox.post(site, "batch-scores", scores.encode(), message_id=f"scores-{number:012d}-{site}"[:80])
        self._note(site, "scores", number)

    def _sent(self, site: SiteId, kind: str) -> int:
        return self._store.state.sent.get(site, {}).get(kind, 0)

    def _note(self, site: SiteId, kind: str, number: int) -> None:
        self._store.state.sent.setdefault(site, {})[kind] = number


def _parts(files: Iterator[tuple[str, bytes]]) -> Iterator[sites_pb2.RepositoryFiles]:
    part, size = sites_pb2.RepositoryFiles(), 0
    for path, data in files:
        if size and size + len(data) > MAX_PART_BYTES:
            yield part
            part, size = sites_pb2.RepositoryFiles(), 0
        part.files.add(path=path, data=data)
        size += len(data)
    if size:
        yield part
