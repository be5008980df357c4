"""Turns an operator's proposal into a candidate, in every region the same."""

from __future__ import annotations

import re

from nfl_cluster.brain.content import Content
from nfl_cluster.brain.state import Candidate
from nfl_cluster.brain.store import RootStore
from nfl_cluster.proposal import FOLDER, shared_tensors
from nfl_core.errors import NotFoundError
from nfl_core.ids import digest_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


def take_proposal(name: str, *, store: RootStore, content: Content, at: str) -> Candidate:
    """Write a proposal's tensors where candidates are, and return it as a candidate that waits for the gates.

    Args:
        name: Digest of the proposal.
        store: The root's.
        content: What runs now.
        at: Now, ISO 8601.

    Raises:
        NotFoundError: There is no such proposal.
        TensorFileError: It was damaged.
        ProposalError: It does not fit the running schema.
    """
    if not _DIGEST.fullmatch(name):
        raise NotFoundError(f"no proposal {name[:80]!r}")
    tensors = shared_tensors(store.get_arrays(FOLDER, f"{name}.safetensors"), content.schema)
    candidate_id = digest_of(f"{content.version}|proposal|{name}".encode())[:32]
    for region in sorted(content.tensors):
        store.put_arrays(tensors, "candidates", candidate_id, f"{region}.safetensors")
    store.put_arrays({}, "momentum", f"{candidate_id}.safetensors")  # what moved the old weights does not move these
    return Candidate(candidate_id=candidate_id, base_version=content.version, batches=(), num_contributions=0, at=at)
