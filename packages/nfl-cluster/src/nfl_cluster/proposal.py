"""The door for weights that no batch made, for instance a student from `nfl cluster distil`.

A proposal is copied beside the root's state and ordered like everything else an operator wants. The root makes it a
candidate once it is free, puts it through the same gates as any other, and publishes it only when all of them passed.

Rules:

* a proposal holds every shared tensor of the running schema, in the same form in every region; private ones are left
  out, because they belong to the owners;
* what does not fit is refused before it is ordered, and again by the root, whose schema may have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfl_cluster.operations import send
from nfl_cluster.service import SiteFolder, utc_now
from nfl_core.config import load_fleet
from nfl_core.durable import make_folder, read_file, write_file
from nfl_core.errors import NotFoundError, SchemaError
from nfl_core.ids import digest_of
from nfl_core.schema import TensorSchema
from nfl_core.tensors import read_tensors, write_tensors
from nfl_ota import Repository

FOLDER = "proposals"
MAX_PROPOSAL_BYTES = 1024 * 1024 * 1024


class ProposalError(SchemaError):
    """Proposed weights are not those of the fleet's model."""

    code = "proposal.other-model"
    hint = "teach a student of the fleet's own model: `nfl config show` says which one and with how many classes"


def propose(home: Path, file: Path, *, reason: str) -> str:
    """Propose the weights of a file as the next version.

    Args:
        home: `NFL_HOME`, with a fleet in it.
        file: safetensors with at least every shared tensor of the fleet's model, float32.
        reason: Why; recorded.

    Returns:
        Id of the order.

    Raises:
        NotFoundError: There is no such file, no fleet in the home, or no version of it.
        TensorFileError: The file is no strict tensor file.
        ProposalError: It holds the weights of another model.
        StorageFullError: The disk is full.
    """
    load_fleet(home / "fleet.toml")
    root = SiteFolder.of_root(home)
    repository = Repository.open(root.repository, root.tuf_keys, utc_now)
    regions = repository.regions()
    if not regions:
        raise NotFoundError("the fleet has no version yet", hint="run `nfl cluster init` first")
    schema = repository.manifest(regions[0], max(repository.versions(regions[0]))).tensor_schema
    arrays = read_tensors(read_file(file), None, max_bytes=MAX_PROPOSAL_BYTES)
    data = write_tensors(shared_tensors(arrays, schema))
    make_folder(root.state / FOLDER)
    name = digest_of(data)
    write_file(root.state / FOLDER / f"{name}.safetensors", data)
    return send(home, "propose", candidate=name, reason=reason)


def shared_tensors(arrays: Mapping[str, NDArray[np.generic]], schema: TensorSchema) -> dict[str, NDArray[np.float32]]:
    """Return the shared tensors of a schema out of `arrays`, in its order.

    Raises:
        ProposalError: One is missing, misshaped or not float32, or there is one that the schema does not know.
    """
    unknown = sorted(set(arrays) - {tensor.name for tensor in schema.tensors})
    if unknown:
        raise ProposalError(f"proposed are {unknown[:3]}, which the fleet's model does not have")
    found: dict[str, NDArray[np.float32]] = {}
    for tensor in schema.shared:
        array = arrays.get(tensor.name)
        if array is None or array.shape != tensor.shape or array.dtype != np.float32:
            got = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise ProposalError(f"tensor {tensor.name!r} is {got}, expected float32{list(tensor.shape)}")
        found[tensor.name] = array.astype(np.float32)
    return found
