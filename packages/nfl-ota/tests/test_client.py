"""Attacks on a device that updates, each against the real publisher's files in the server's memory."""

from __future__ import annotations

import copy
import errno
import json
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Targets

from nfl_core import durable
from nfl_core.errors import (
    ContentError,
    DurableError,
    ExpiredError,
    NotFoundError,
    RollbackError,
    SignatureError,
    StorageFullError,
    TransportError,
    UnreachableError,
)
from nfl_core.ids import digest_of
from nfl_ota import Floor, ManifestError, MetadataError, Mirror

V1, V2 = "bundles/north/1.json", "bundles/north/2.json"


def trusted_files(world, name="device"):
    folder = world.folder / name / "metadata"
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


def forge(world, path, change, *, sign_with=("timestamp",)):
    """Change served metadata and sign them again with the fleet's own keys, as a thief of those keys would."""
    metadata = Metadata.from_bytes(world.server.files[path])
    change(metadata.signed)
    metadata.signatures.clear()
    for name in sign_with:
        metadata.sign(world.repository._keys.signer(name), append=True)
    return metadata.to_bytes()


def serve_targets(world, data, number):
    """Serve forged targets below a snapshot and a timestamp that are signed as they should be."""

    def point_to_targets(signed):
        signed.version = number
        signed.meta["targets.json"] = MetaFile.from_data(number, data, ["sha256"])

    snapshot = forge(world, "metadata/2.snapshot.json", point_to_targets, sign_with=("snapshot",))

    def point_to_snapshot(signed):
        signed.version = number
        signed.snapshot_meta = MetaFile.from_data(number, snapshot, ["sha256"])

    world.server.files["metadata/timestamp.json"] = forge(world, "metadata/timestamp.json", point_to_snapshot)
    world.server.files |= {f"metadata/{number}.targets.json": data, f"metadata/{number}.snapshot.json": snapshot}


def test_a_bundle_arrives_whole(world, worlds):
    world.publish(1)
    client = world.client()
    bundle = client.download(client.refresh(V1))
    assert bundle.graph == worlds.GRAPH
    expected = worlds.tensors(1)
    assert bundle.tensors.keys() == expected.keys()
    assert all((bundle.tensors[name] == expected[name]).all() for name in expected)


def test_only_what_changed_is_fetched(world, worlds):
    world.publish(1)
    client = world.client()
    client.download(client.refresh(V1))
    world.publish(2, values={**worlds.tensors(1), "head.w": worlds.tensors(2)["head.w"]})
    manifest = client.refresh(V2)
    assert [ref.name for ref in client.missing(manifest)] == ["head.w"]
    world.server.fetched.clear()
    client.download(manifest)
    assert len([path for path, _ in world.server.fetched if path.startswith("chunks/")]) == 1


def test_a_rollback_is_a_new_version_without_new_chunks(world):
    world.publish(1)
    client = world.client()
    first = client.download(client.refresh(V1))
    world.publish(2)
    client.download(client.refresh(V2))
    world.repository.publish_rollback(to=1, version=3)
    world.push()
    world.server.fetched.clear()
    third = client.download(client.refresh("bundles/north/3.json"))
    assert third.manifest.restores == 1
    assert third.manifest.content_digest == first.manifest.content_digest
    assert not [path for path, _ in world.server.fetched if path.startswith("chunks/")]


@pytest.mark.parametrize("kind", ["chunk of a tensor", "graph", "manifest"])
def test_a_bundle_with_one_byte_changed_is_refused(world, kind):
    world.publish(1)
    manifest = world.repository.manifest("north", 1)
    path = {
        "chunk of a tensor": f"chunks/{manifest.tensors[0].sha256}",
        "graph": f"chunks/{manifest.graph.sha256}",
        "manifest": next(path for path in world.server.files if path.startswith("targets/")),
    }[kind]
    data = world.server.files[path]
    client = world.client()
    for place in range(0, len(data), max(1, len(data) // 40)):
        world.server.files[path] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(ContentError):
            client.download(client.refresh(V1))
    world.server.files[path] = data
    client.download(client.refresh(V1))


def test_a_shortened_chunk_is_refused(world):
    world.publish(1)
    path = f"chunks/{world.repository.manifest('north', 1).graph.sha256}"
    world.server.files[path] = world.server.files[path][:-1]
    client = world.client()
    with pytest.raises(ContentError, match="bytes, expected"):
        client.download(client.refresh(V1))
    kept = {path.name for path in (world.folder / "device" / "chunks").iterdir()}
    assert kept == {ref.sha256 for ref in world.repository.manifest("north", 1).tensors}


def test_rollback_of_the_whole_state_is_refused(world):
    world.publish(1)
    old = dict(world.server.files)
    client = world.client()
    client.refresh(V1)
    world.publish(2)
    client.refresh(V2)
    before = trusted_files(world)
    world.server.replay(old)
    with pytest.raises(RollbackError):
        client.refresh(V2)
    assert trusted_files(world) == before


def test_rollback_to_an_old_bundle_of_the_present_state_is_refused(world):
    """An old version stays signed, so the leaf could assign it: the floor knows better."""
    world.publish(1)
    world.publish(2)
    client = world.client()
    client.refresh(V2)
    with pytest.raises(RollbackError, match="bundle has number 1"):
        client.refresh(V1)


@pytest.mark.parametrize("damage", ["zeroed", "removed", "cut"])
@pytest.mark.parametrize("roles", [("timestamp",), ("snapshot",), ("targets",), ("timestamp", "snapshot", "targets")])
def test_replay_after_a_power_cut_is_refused_by_the_floor(world, damage, roles):
    """python-tuf alone accepts this replay: its memory is the files that the power cut took."""
    world.publish(1)
    old = dict(world.server.files)
    world.publish(2)
    world.client().refresh(V2)
    for role in roles:
        path = world.folder / "device" / "metadata" / f"{role}.json"
        data = path.read_bytes()
        path.unlink() if damage == "removed" else path.write_bytes(
            bytes(len(data)) if damage == "zeroed" else data[:100]
        )
    before = trusted_files(world)
    world.server.replay(old)
    with pytest.raises(RollbackError):
        world.client().refresh(V1)
    assert trusted_files(world) == before


def test_without_the_floor_that_replay_is_accepted(world):
    """The control of the test above: it would pass for a wrong reason if something else refused the replay."""
    world.publish(1)
    old = dict(world.server.files)
    world.publish(2)
    world.client().refresh(V2)
    for role in ("timestamp", "snapshot", "targets"):
        (world.folder / "device" / "metadata" / f"{role}.json").unlink()
    for place in (0, 1):
        (world.folder / f"device-floor.{place}").unlink(missing_ok=True)
    world.server.replay(old)
    assert world.client().refresh(V1).version == 1


def test_root_rollback_after_a_power_cut_is_refused(world):
    world.publish(1)
    old = dict(world.server.files)
    world.repository.rotate_root_key("root-1")
    world.push()
    world.client().refresh(V1)
    (world.folder / "device" / "metadata" / "root_history" / "2.root.json").write_bytes(b"")
    world.server.files = old
    with pytest.raises(RollbackError, match="root has number 1"):
        world.client().refresh(V1)


@pytest.mark.parametrize("days", [2, 8, 100, 400])
def test_an_expired_role_is_refused(world, days):
    """After 2 days the timestamp has expired, after 8 the snapshot, after 100 the targets, after 400 the root."""
    world.publish(1)
    world.clock.advance(days=days)
    if days > 2:
        later = {"timestamp": timedelta(days=days)} | ({"snapshot": timedelta(days=days)} if days > 8 else {})
        later |= {"targets": timedelta(days=days)} if days > 100 else {}

        def prolong(signed):
            signed.expires = world.clock() + later[signed.type]

        served = world.server.files
        number = max(int(path.split("/")[1].split(".")[0]) for path in served if path.endswith(".targets.json"))
        chain = [(f"metadata/{number}.targets.json", "targets"), (f"metadata/{number}.snapshot.json", "snapshot")]
        for path, role in chain:
            if role in later:
                served[path] = forge(world, path, prolong, sign_with=(role,))

        def link(signed):
            prolong(signed)
            signed.snapshot_meta = MetaFile.from_data(number, served[chain[1][0]], ["sha256"])

        if "targets" in later:

            def relink(signed):
                prolong(signed)
                signed.meta["targets.json"] = MetaFile.from_data(number, served[chain[0][0]], ["sha256"])

            served[chain[1][0]] = forge(world, chain[1][0], relink, sign_with=("snapshot",))
        served["metadata/timestamp.json"] = forge(world, "metadata/timestamp.json", link)
    with pytest.raises(ExpiredError):
        world.client().refresh(V1)


def test_freeze_is_noticed_although_the_clock_was_set_back(world):
    world.publish(1)
    world.clock.advance(hours=20)
    world.client().refresh(V1)
    frozen = dict(world.server.files)
    world.clock.advance(hours=20)
    world.repository.refresh_timestamp()
    world.push()
    world.client().refresh(V1)
    for role in ("timestamp", "snapshot", "targets"):
        (world.folder / "device" / "metadata" / f"{role}.json").unlink()
    world.server.files = frozen
    world.clock.advance(hours=-39)
    with pytest.raises((ExpiredError, RollbackError)):
        world.client().refresh(V1)
    assert Floor(world.folder / "device-floor").now(world.clock()) > world.clock()


def test_time_never_runs_backwards(world):
    """A device whose clock fell back to the past judges expiry by the last refresh that succeeded."""
    world.publish(1)
    world.clock.advance(hours=23)
    world.client().refresh(V1)
    floor = Floor(world.folder / "device-floor")
    world.clock.advance(days=-300)
    assert floor.now(world.clock()) == floor.state.seen_at


def test_a_clock_that_jumped_ahead_does_not_lock_the_device_out(world):
    world.publish(1)
    client = world.client()
    client.refresh(V1)
    world.clock.advance(days=4000)
    with pytest.raises(ExpiredError):
        client.refresh(V1)
    world.clock.advance(days=-4000)
    client.refresh(V1)


def test_fast_forward_is_undone_by_new_keys(world):
    """A thief of the timestamp key drives its number up; after the root has replaced the key, devices follow again."""
    world.publish(1)
    stolen = forge(world, "metadata/timestamp.json", lambda signed: setattr(signed, "version", 2**31))
    honest = world.server.files["metadata/timestamp.json"]
    world.server.files["metadata/timestamp.json"] = stolen
    client = world.client()
    client.refresh(V1)
    world.server.files["metadata/timestamp.json"] = honest
    with pytest.raises(RollbackError):
        client.refresh(V1)
    replace_key(world, "timestamp", "metadata/timestamp.json")
    assert client.refresh(V1).version == 1
    world.server.files["metadata/timestamp.json"] = stolen
    with pytest.raises(SignatureError):
        client.refresh(V1)


def replace_key(world, role, *files):
    """Let the root replace the key of a role, and sign what the server holds with the new one as well."""
    keys = world.repository._keys
    root = Metadata.from_bytes(world.server.files["metadata/1.root.json"]).signed
    new = CryptoSigner.generate_ed25519()
    root.revoke_key(keys.public(role).keyid, role)
    root.add_key(new.public_key, role)
    root.version = 2
    world.server.files["metadata/2.root.json"] = keys.sign(root, "root-1", "root-2")
    for path in files:
        metadata = Metadata.from_bytes(world.server.files[path])
        metadata.sign(new, append=True)
        world.server.files[path] = metadata.to_bytes()
    return new


def test_fast_forward_of_the_targets_is_undone_by_a_new_snapshot_key(world):
    """The snapshot names the number of the targets, so a new snapshot key lets that number sink, but no bundle's."""
    world.publish(1)
    honest = dict(world.server.files)
    targets = forge(world, "metadata/2.targets.json", lambda s: setattr(s, "version", 900), sign_with=("targets",))
    serve_targets(world, targets, 900)
    client = world.client()
    client.refresh(V1)
    world.server.files = honest
    with pytest.raises(RollbackError):
        client.refresh(V1)
    new = replace_key(world, "snapshot")
    snapshot = Metadata.from_bytes(honest["metadata/2.snapshot.json"])
    snapshot.signed.version = 901
    snapshot.sign(new)
    meta = MetaFile.from_data(901, snapshot.to_bytes(), ["sha256"])

    def point_to_snapshot(signed):
        signed.version, signed.snapshot_meta = 901, meta

    world.server.files["metadata/901.snapshot.json"] = snapshot.to_bytes()
    world.server.files["metadata/timestamp.json"] = forge(world, "metadata/timestamp.json", point_to_snapshot)
    assert client.refresh(V1).version == 1
    floor = Floor(world.folder / "device-floor").state
    assert (floor.targets.number, floor.bundle.number) == (2, 1)


def test_mix_and_match_is_refused(world):
    """A new timestamp with the snapshot, or the targets, of another moment."""
    world.publish(1)
    world.publish(2)
    for kind in ("snapshot", "targets"):
        files = world.server.files
        world.server.files = {**files, f"metadata/3.{kind}.json": files[f"metadata/2.{kind}.json"]}
        with pytest.raises(ContentError):
            world.client().refresh(V2)
        world.server.files = files


def test_mix_and_match_without_digests_is_refused_by_number(world):
    """Even a thief of the timestamp key cannot pair a new timestamp with an old snapshot."""
    world.publish(1)
    world.publish(2)

    def forget_digest(signed):
        signed.snapshot_meta = MetaFile(signed.snapshot_meta.version)

    files = world.server.files
    files["metadata/timestamp.json"] = forge(world, "metadata/timestamp.json", forget_digest)
    files["metadata/3.snapshot.json"] = files["metadata/2.snapshot.json"]
    with pytest.raises(RollbackError, match="snapshot version"):
        world.client().refresh(V2)


@pytest.mark.parametrize(
    "what", ["metadata/2.root.json", "metadata/timestamp.json", "metadata/2.snapshot.json", "chunk", "manifest"]
)
def test_endless_data_are_cut_off(world, what):
    world.publish(1)
    manifest = world.repository.manifest("north", 1)
    path = {
        "chunk": f"chunks/{manifest.graph.sha256}",
        "manifest": next(path for path in world.server.files if path.startswith("targets/")),
    }.get(what, what)
    caps = []
    honest = world.server.fetch

    def endless(wanted, *, max_bytes):
        if wanted != path:
            return honest(wanted, max_bytes=max_bytes)
        caps.append(max_bytes)
        return bytes(max_bytes + 1)  # what a fetcher that does not keep to the cap would hand over

    world.server.fetch = endless
    client = world.client()
    with pytest.raises(ContentError):
        client.download(client.refresh(V1))
    assert caps
    assert max(caps) <= 2 * 2**20
    assert not list((world.folder / "device" / "staging").iterdir())


def test_arbitrary_software_is_refused(world):
    """A manifest and metadata of somebody who has no key of the fleet."""
    world.publish(1)
    metadata = Metadata.from_bytes(world.server.files["metadata/2.targets.json"])
    metadata.signed.version = 3
    metadata.signatures.clear()
    thief = CryptoSigner.generate_ed25519()
    metadata.sign(thief)
    serve_targets(world, metadata.to_bytes(), 3)
    with pytest.raises(SignatureError):
        world.client().refresh(V1)


def test_a_root_of_one_key_is_refused(world):
    """One stolen root key is below the threshold of two."""
    root = Metadata.from_bytes(world.server.files["metadata/1.root.json"]).signed
    root.version = 2
    world.server.files["metadata/2.root.json"] = world.repository._keys.sign(root, "root-1")
    world.publish(1)
    with pytest.raises(SignatureError):
        world.client().refresh(V1)


def test_a_signature_counted_twice_is_refused(world):
    root = Metadata.from_bytes(world.server.files["metadata/1.root.json"]).signed
    root.version = 2
    forged = json.loads(world.repository._keys.sign(root, "root-1"))
    forged["signatures"] *= 2
    world.server.files["metadata/2.root.json"] = json.dumps(forged).encode()
    world.publish(1)
    with pytest.raises(MetadataError):
        world.client().refresh(V1)


def test_root_keys_rotate_and_old_devices_follow(world):
    world.publish(1)
    client = world.client()
    client.refresh(V1)
    for name in ("root-1", "root-2", "root-3", "root-1"):
        world.repository.rotate_root_key(name)
    world.publish(2)
    assert client.refresh(V2).version == 2
    assert world.client("new device").refresh(V2).version == 2
    assert Floor(world.folder / "device-floor").state.root.number == 5


def test_a_new_root_is_kept_although_the_refresh_fails(world):
    world.publish(1)
    world.client().refresh(V1)
    world.repository.rotate_root_key("root-1")
    world.push()
    world.server.failing["metadata/timestamp.json"] = UnreachableError("gone")
    with pytest.raises(TransportError):
        world.client().refresh(V1)
    assert Floor(world.folder / "device-floor").state.root.number == 2


def test_a_manifest_at_the_path_of_another_is_refused(world, worlds):
    """The targets key was used to sign version 1 of north as version 5 of south."""
    data, chunks = worlds.make(1)
    world.repository.publish([(data, chunks)])
    targets = copy.deepcopy(world.repository._targets.targets)
    world.push()
    info = targets[V1]
    path = "bundles/south/5.json"
    moved = Targets(
        version=3, expires=world.clock() + timedelta(days=1), targets={path: type(info)(info.length, info.hashes, path)}
    )
    signed = world.repository._keys.sign(moved, "targets")
    serve_targets(world, signed, 3)
    world.server.files[f"targets/bundles/south/{info.hashes['sha256']}.5.json"] = data
    with pytest.raises(ManifestError, match="is that of"):
        world.client().refresh(path)


def test_an_unknown_target_is_not_found(world):
    world.publish(1)
    with pytest.raises(NotFoundError, match="no signed target"):
        world.client().refresh("bundles/north/9.json")
    # What was verified on the way counts all the same.
    assert Floor(world.folder / "device-floor").state.timestamp.number == 2


def test_metadata_that_are_no_json_are_refused(world):
    world.publish(1)
    world.server.files["metadata/timestamp.json"] = b"<html>log in to this network first</html>"
    with pytest.raises(MetadataError):
        world.client().refresh(V1)


def test_a_server_without_timestamp_is_not_found(world):
    del world.server.files["metadata/timestamp.json"]
    with pytest.raises(NotFoundError):
        world.client().refresh(V1)


@pytest.mark.parametrize("error", [UnreachableError("no route"), ConnectionResetError("reset"), TimeoutError("slow")])
def test_a_broken_link_is_a_transport_error(world, error):
    world.publish(1)
    world.server.failing["metadata/timestamp.json"] = error
    with pytest.raises(TransportError):
        world.client().refresh(V1)


def test_an_interrupted_download_goes_on_where_it_stopped(world):
    world.publish(1)
    client = world.client()
    manifest = client.refresh(V1)
    world.server.failing[f"chunks/{manifest.graph.sha256}"] = UnreachableError("gone")
    with pytest.raises(UnreachableError):
        client.download(manifest)
    assert [ref.name for ref in world.client().missing(manifest)] == ["graph"]
    world.server.failing.clear()
    world.server.fetched.clear()
    world.client().download(manifest)
    assert len(world.server.fetched) == 1


def test_a_chunk_damaged_on_disk_is_fetched_again(world):
    world.publish(1)
    client = world.client()
    manifest = client.refresh(V1)
    client.download(manifest)
    path = world.folder / "device" / "chunks" / manifest.tensors[0].sha256
    path.write_bytes(bytes(path.stat().st_size))
    assert client.download(manifest).manifest == manifest
    assert digest_of(path.read_bytes()) == manifest.tensors[0].sha256


def test_a_full_disk_during_refresh_leaves_what_was_trusted(world, monkeypatch):
    world.publish(1)
    client = world.client()
    client.refresh(V1)
    before = trusted_files(world)
    world.publish(2)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.LOCAL_DISK, "_write", full, raising=True)
        with pytest.raises(StorageFullError):
            client.refresh(V2)
    assert trusted_files(world) == before
    assert client.refresh(V2).version == 2


def test_a_floor_that_cannot_be_read_stops_updates(world):
    world.publish(1)
    world.client().refresh(V1)
    for place in (0, 1):
        path = world.folder / f"device-floor.{place}"
        if path.exists():
            path.write_bytes(b"?")
    with pytest.raises(DurableError):
        world.client()


def test_refreshing_again_writes_nothing(world):
    world.publish(1)
    world.client().refresh(V1)
    times = {path: path.stat().st_mtime_ns for path in world.folder.rglob("device*/**/*.json")}
    floor = {path: path.stat().st_mtime_ns for path in world.folder.glob("device-floor*")}
    world.clock.advance(minutes=1)
    world.client().refresh(V1)
    assert {path: path.stat().st_mtime_ns for path in world.folder.rglob("device*/**/*.json")} == times
    assert {path: path.stat().st_mtime_ns for path in world.folder.glob("device-floor*")} == floor


def test_forget_keeps_what_is_named(world):
    world.publish(1)
    client = world.client()
    first = client.refresh(V1)
    client.download(first)
    world.publish(2)
    second = client.refresh(V2)
    bundle = client.download(second)
    assert client.forget([second]) > 0
    assert client.missing(second) == ()
    assert [ref.name for ref in client.missing(first)] == ["body.w", "middle.w", "head.w"]
    client.forget([])
    client.remember(bundle)
    assert client.missing(second) == ()


def test_a_dumb_cache_serves_a_consistent_state_after_any_part_of_a_publication(world):
    """Whoever received any prefix of the files serves the old state or the new one, never a broken one."""
    world.publish(1)
    marker = world.repository.marker
    mirror = Mirror(world.folder / "cache")
    for path, data in world.repository.files_since(0):
        mirror.write(path, data)
    world.repository.rotate_root_key("root-2")
    world.publish(2)
    files = list(world.repository.files_since(marker))
    assert files[-1][0] == "metadata/timestamp.json"
    for index, (path, data) in enumerate(files):
        client = world.client(f"device {index}", fetcher=mirror)
        assert client.download(client.refresh(V1)).manifest.version == 1
        with pytest.raises(NotFoundError):
            client.refresh(V2)
        mirror.write(path, data)
    client = world.client("last", fetcher=mirror)
    assert client.download(client.refresh(V2)).manifest.version == 2
