from __future__ import annotations

import stat
from datetime import timedelta

import pytest
from tuf.api.metadata import Metadata

from nfl_core import durable
from nfl_core.errors import ContentError, DurableError, NotFoundError, StorageFullError
from nfl_core.ids import digest_of
from nfl_ota import Expiries, ManifestError, PublishError, Repository

FULL = OSError(28, "No space left on device")


def reopened(world):
    return Repository.open(world.folder / "repo", world.folder / "keys", world.clock)


def test_create_twice_opens(world):
    before = world.repository.root_bytes
    again = Repository.create(world.folder / "repo", world.folder / "keys", world.clock)
    assert again.root_bytes == before


def test_roles_are_as_promised(world):
    root = Metadata.from_bytes(world.repository.root_bytes)
    assert (root.signed.roles["root"].threshold, len(root.signed.roles["root"].keyids)) == (2, 3)
    assert root.signed.consistent_snapshot
    assert {key.scheme for key in root.signed.keys.values()} == {"ed25519"}
    assert root.signed.expires == world.clock() + timedelta(days=365)
    days = {}
    for name in ("timestamp", "1.snapshot", "1.targets"):
        signed = Metadata.from_bytes(world.server.files[f"metadata/{name}.json"]).signed
        days[signed.type] = (signed.expires - world.clock()).days
    assert days == {"timestamp": 1, "snapshot": 7, "targets": 90}
    assert world.repository.expires_at == world.clock() + timedelta(days=1)


def test_expiries_are_configurable(worlds, tmp_path):
    repository = Repository.create(
        tmp_path / "repo", tmp_path / "keys", worlds.Clock(), expiries=Expiries(timestamp=timedelta(days=30))
    )
    assert repository.expires_at == worlds.START + timedelta(days=7)


def test_keys_are_private(world):
    for path in (world.folder / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in (world.folder / "keys").iterdir()} == {
        "root-1.pem", "root-2.pem", "root-3.pem", "targets.pem", "snapshot.pem", "timestamp.pem",
    }  # fmt: skip


def test_publishing_works_while_the_root_keys_are_away(world, worlds):
    for name in ("root-1", "root-2", "root-3"):
        (world.folder / "keys" / f"{name}.pem").unlink()
    repository = reopened(world)
    repository.publish([worlds.make(1)])
    with pytest.raises(NotFoundError, match="the key root-1"):
        repository.rotate_root_key("root-1")


def test_a_missing_online_key_is_named(world):
    (world.folder / "keys" / "targets.pem").unlink()
    with pytest.raises(NotFoundError, match=r"targets\.pem"):
        reopened(world)


def test_a_key_that_is_none_is_named(world):
    (world.folder / "keys" / "targets.pem").write_bytes(b"no key")
    with pytest.raises(DurableError, match=r"targets\.pem"):
        reopened(world)


def test_no_repository_is_not_found(world, tmp_path):
    with pytest.raises(NotFoundError):
        Repository.open(tmp_path / "elsewhere", world.folder / "keys", world.clock)


def test_damaged_metadata_are_not_signed_over(world):
    (world.folder / "repo" / "metadata" / "timestamp.json").write_bytes(b"{}")
    with pytest.raises(DurableError, match=r"timestamp\.json"):
        reopened(world)


def test_one_publication_holds_all_regions(world, worlds):
    before = world.repository.marker
    paths = world.repository.publish([worlds.make(1), worlds.make(1, region="south")])
    assert paths == ("bundles/north/1.json", "bundles/south/1.json")
    assert world.repository.marker == before + 1
    assert world.repository.regions() == ("north", "south")
    assert world.repository.versions("south") == (1,)
    assert reopened(world).manifest("south", 1).region == "south"


def test_publishing_the_same_bytes_again_changes_nothing(world, worlds):
    world.repository.publish([worlds.make(1)])
    marker = world.repository.marker
    assert world.repository.publish([worlds.make(1)]) == ("bundles/north/1.json",)
    assert world.repository.marker == marker


def test_a_number_is_used_once(world, worlds):
    world.repository.publish([worlds.make(2)])
    with pytest.raises(PublishError, match="other content"):
        world.repository.publish([worlds.make(2, values=worlds.tensors(9))])
    with pytest.raises(PublishError, match="not above the newest, 2"):
        world.repository.publish([worlds.make(1)])
    with pytest.raises(PublishError, match="twice"):
        world.repository.publish([worlds.make(3), worlds.make(3)])
    assert world.repository.versions("north") == (2,)


def test_a_bad_bundle_is_not_published(world, worlds):
    data, chunks = worlds.make(1)
    marker = world.repository.marker
    with pytest.raises(ManifestError):
        world.repository.publish([(data[:-1], chunks)])
    digest = next(iter(chunks))
    with pytest.raises(ContentError):
        world.repository.publish([(data, {**chunks, digest: b"other"})])
    with pytest.raises(NotFoundError):
        world.repository.publish([(data, {})])
    assert world.repository.marker == marker


def test_a_rollback_reaches_every_region_that_had_the_version(world, worlds):
    world.repository.publish([worlds.make(1), worlds.make(1, region="south")])
    world.repository.publish([worlds.make(2), worlds.make(2, region="south")])
    world.clock.advance(hours=1)
    manifests = world.repository.publish_rollback(to=1, version=3)
    assert [(manifest.region, manifest.version, manifest.restores) for manifest in manifests] == [
        ("north", 3, 1),
        ("south", 3, 1),
    ]
    assert manifests[0].content_digest == world.repository.manifest("north", 1).content_digest
    assert manifests[0].tensors == world.repository.manifest("north", 1).tensors
    assert manifests[0].created_at == world.clock()
    with pytest.raises(NotFoundError):
        world.repository.publish_rollback(to=9, version=10)
    with pytest.raises(PublishError):
        world.repository.publish_rollback(to=1, version=2)


def test_files_since_gives_what_a_cache_lacks(world, worlds):
    world.repository.publish([worlds.make(1)])
    marker = world.repository.marker
    assert list(world.repository.files_since(marker)) == []
    world.repository.publish([worlds.make(2, values={**worlds.tensors(1), "head.w": worlds.tensors(2)["head.w"]})])
    paths = [path for path, _ in world.repository.files_since(marker)]
    assert [path for path in paths if path.startswith("targets/")]
    assert paths[-1] == "metadata/timestamp.json"
    assert paths.count("metadata/timestamp.json") == 1
    all_paths = [path for path, _ in reopened(world).files_since(0)]
    assert set(paths) < set(all_paths)
    assert len(all_paths) == len(set(all_paths))
    assert [path for path, _ in world.repository.files_since(10**6)] == []


def test_refreshing_the_timestamp_pushes_only_that(world):
    marker = world.repository.marker
    world.clock.advance(hours=12)
    world.repository.refresh_timestamp()
    assert [path for path, _ in world.repository.files_since(marker)] == ["metadata/timestamp.json"]
    assert world.repository.expires_at == world.clock() + timedelta(days=1)


def test_a_fleet_that_only_refreshes_never_expires(world):
    world.publish(1)
    for _ in range(60):  # past half of the 90 days of the targets
        world.clock.advance(hours=20)
        world.repository.refresh_timestamp()
        assert world.repository.expires_at >= world.clock() + timedelta(hours=23)
    world.push()
    assert world.client().refresh("bundles/north/1.json").version == 1


@pytest.mark.parametrize("allowed", range(14))
def test_an_interrupted_publication_leaves_the_old_state_and_can_be_repeated(world, worlds, monkeypatch, allowed):
    """The disk fails at every single write of a publication in turn."""
    world.publish(1)
    count = [0]
    write = durable.LOCAL_DISK._write

    def failing(path, data, flags, mode):
        if count[0] == allowed:
            raise FULL
        count[0] += 1
        write(path, data, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(durable.LOCAL_DISK, "_write", failing)
        try:
            world.repository.publish([worlds.make(2)])
        except StorageFullError:
            interrupted = True
        else:
            interrupted = False
    assert interrupted == (allowed < 8)
    if interrupted:
        assert world.repository.versions("north") == (1,)
        assert world.client("old").refresh("bundles/north/1.json").version == 1
        world.repository = reopened(world)
        assert world.repository.versions("north") == (1,)
        assert list(world.repository.files_since(world.marker)) == []
        world.repository.publish([worlds.make(2)])
    world.push()
    client = world.client()
    assert client.download(client.refresh("bundles/north/2.json")).manifest.version == 2


def test_a_root_rotation_that_was_interrupted_can_be_repeated(world, monkeypatch):
    world.publish(1)
    write = durable.LOCAL_DISK._write

    def failing(path, data, flags, mode):
        if "2.root.json" in path.name:
            raise FULL
        write(path, data, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(durable.LOCAL_DISK, "_write", failing)
        with pytest.raises(StorageFullError):
            world.repository.rotate_root_key("root-1")
    world.repository = reopened(world)
    world.repository.rotate_root_key("root-1")
    world.repository.rotate_root_key("root-2")
    world.push()
    assert world.client().refresh("bundles/north/1.json").version == 1
    root = Metadata.from_bytes(world.repository.root_bytes).signed
    assert (root.version, len(root.roles["root"].keyids)) == (3, 3)


def test_a_damaged_archive_does_not_publish(world, worlds):
    data, chunks = worlds.make(1)
    world.repository.publish([(data, chunks)])
    digest = world.repository.manifest("north", 1).tensors[0].sha256
    (world.folder / "repo" / "chunks" / digest).write_bytes(b"rot")
    with pytest.raises(ContentError):
        world.repository.publish_rollback(to=1, version=2)
    manifest = next((world.folder / "repo" / "targets").rglob("*.json"))
    manifest.write_bytes(b"rot")
    with pytest.raises(DurableError, match="damaged"):
        world.repository.manifest("north", 1)
    assert digest_of(data) in manifest.name
