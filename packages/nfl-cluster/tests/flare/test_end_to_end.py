"""Real FLARE: every message arrives once, whoever is killed; TLS 1.2 is refused; no process holds torch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nfl_cluster.flare.provision import provision
from nfl_cluster.mailbox import Mailbox
from nfl_cluster.processes import Supervisor
from nfl_cluster.service import SiteFolder
from nfl_cluster.topology import fleet_processes
from nfl_core.config import FleetConfig, write_fleet
from nfl_core.ids import SiteId

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

SITES = ("root", "keeper", "leaf-1", "leaf-2")
PAIRS = [
    *(("root", site) for site in SITES[1:]),
    *((site, "root") for site in SITES[1:]),
    *(("leaf-1", "keeper"), ("leaf-2", "keeper"), ("keeper", "leaf-1")),
]
DEADLINE_S = 90.0


class Fleet:
    """The FLARE part of a fleet, under our supervisor, with the services played by the test."""

    def __init__(self, home: Path, config: FleetConfig) -> None:
        self.home, self.config = home, config
        write_fleet(home / "fleet.toml", config)
        provision(config, home / "flare")
        folders = {"root": SiteFolder.of_root(home), "keeper": SiteFolder.of_keeper(home)}
        folders |= {leaf.site: SiteFolder.of_leaf(home, leaf.site) for leaf in config.leaves}
        self.boxes = {site: Mailbox(folder.mailbox) for site, folder in folders.items()}
        specs = [spec for spec in fleet_processes(config, home) if "flare" in spec.name]
        self.supervisor = Supervisor(home / "run", specs)
        self.posted: set[tuple[str, str, str]] = set()
        self.got: list[tuple[str, str, str]] = []

    def post(self, *, count: int = 1, num_bytes: int = 500) -> None:
        for sender, receiver in PAIRS:
            for _ in range(count):
                message_id = self.boxes[sender].post(SiteId(receiver), "test", os.urandom(num_bytes))
                self.posted.add((sender, receiver, message_id))

    def collect(self) -> None:
        for site, box in self.boxes.items():
            for message in box.incoming():
                self.got.append((message.peer, site, message.message_id))
                box.done(message)

    def until_all_arrived(self) -> float:
        began = time.monotonic()
        while set(self.got) != self.posted:
            assert time.monotonic() - began < DEADLINE_S, self.posted - set(self.got)
            self.supervisor.poll()
            self.collect()
            time.sleep(0.01)
        assert len(self.got) == len(self.posted)  # none came twice
        return time.monotonic() - began

    def parent(self, site: str) -> psutil.Process:
        pid = self.supervisor.pid(f"{site}-flare")
        assert pid is not None
        return psutil.Process(pid)

    def job_processes(self, site: str) -> list[psutil.Process]:
        return self.parent(site).children(recursive=True)

    def all_processes(self) -> list[psutil.Process]:
        return [one for site in SITES for one in (self.parent(site), *self.job_processes(site))]


@pytest.fixture
def fleet(home: Path, config: FleetConfig) -> Iterator[Fleet]:
    made = Fleet(home, config)
    try:
        yield made
    finally:
        everybody = [psutil.Process(pid) for pid in _pids_below(os.getpid())]
        made.supervisor.stop()
        psutil.wait_procs(everybody, timeout=10)
        assert not [one for one in everybody if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _pids_below(pid: int) -> list[int]:
    return [one.pid for one in psutil.Process(pid).children(recursive=True)]


def test_every_message_arrives_once_whoever_is_killed(fleet: Fleet) -> None:
    figures: dict[str, float] = {}
    fleet.supervisor.start()
    fleet.post()
    figures["first_mail_s"] = fleet.until_all_arrived()
    fleet.post(count=50)
    figures["fifty_each_way_s"] = fleet.until_all_arrived()
    fleet.post(num_bytes=5_000_000)
    figures["five_megabytes_each_way_s"] = fleet.until_all_arrived()
    fleet.post()
    figures["one_each_way_s"] = fleet.until_all_arrived()

    _check_tls(fleet)
    _check_weight(fleet)

    for what, site in (("job", "leaf-1"), ("job", "keeper"), ("job", "root"), ("parent", "leaf-2"), ("parent", "root")):
        victims = fleet.job_processes(site) if what == "job" else [fleet.parent(site)]
        jobs = fleet.job_processes(site)
        assert victims
        for victim in victims:
            victim.kill()
        psutil.wait_procs(jobs, timeout=5)
        assert not [job for job in jobs if job.is_running() and job.status() != psutil.STATUS_ZOMBIE]  # no orphan
        fleet.post(count=3)
        figures[f"recovery_{site}_{what}_s"] = fleet.until_all_arrived()
    sys.stderr.write(json.dumps({key: round(value, 2) for key, value in figures.items()}) + "\n")


def _check_tls(fleet: Fleet) -> None:
    kit = fleet.home / "flare/leaf-1/startup"
    port = fleet.config.root.flare_port
    assert _handshake(kit / "rootCA.pem", kit, port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _handshake(kit / "rootCA.pem", kit, port, ssl.TLSVersion.TLSv1_2)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _handshake(kit / "rootCA.pem", None, port, ssl.TLSVersion.TLSv1_3)  # a stranger without a certificate
    for one in fleet.parent("root").net_connections("inet"):
        if one.status == psutil.CONN_LISTEN:
            assert one.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"


def _handshake(ca: Path, kit: Path | None, port: int, number: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = number
    if kit is not None:
        context.load_cert_chain(kit / "client.crt", kit / "client.key")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        secured.settimeout(5)
        secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        if not secured.recv(1):  # with TLS 1.3 the server speaks about our certificate after the handshake
            raise ConnectionResetError("the server closed the connection")
        return secured.version()


def _check_weight(fleet: Fleet) -> None:
    for one in fleet.all_processes():
        maps = Path(f"/proc/{one.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert "onnxruntime" not in maps
        assert one.memory_info().rss < 400e6
        with contextlib.suppress(psutil.AccessDenied):
            assert one.environ()["GRPC_SSL_CIPHER_SUITES"] == "ECDHE-PSK-AES128-CBC-SHA"


def test_a_class_that_is_not_listed_is_refused(fleet: Fleet) -> None:
    """Zero trust: a job with any other class ends, and nothing of it ran."""
    path = fleet.home / "flare/leaf-1/local/resources.json"
    policy = json.loads(path.read_text())
    policy["class_allow_list"] = ["some.other.Class"]
    path.write_text(json.dumps(policy))
    fleet.supervisor.start()
    deadline = time.monotonic() + DEADLINE_S
    log = fleet.home / "run/logs/leaf-1-flare.log"
    while not (log.exists() and "ComponentNotAuthorized" in log.read_text()):
        assert time.monotonic() < deadline
        fleet.supervisor.poll()
        time.sleep(0.1)
    fleet.boxes["leaf-1"].post(SiteId("root"), "test", b"x")
    for _ in range(20):
        fleet.supervisor.poll()
        time.sleep(0.05)
    assert fleet.boxes["root"].incoming() == []
