"""Every import of nvflare that the cluster has: provisioning, launching, the courier job and its supervisor.

FLARE carries messages between the mailboxes of sites over its own mutual TLS; see docs/adr/0002-flare-as-courier.md.
"""

__all__: list[str] = []
