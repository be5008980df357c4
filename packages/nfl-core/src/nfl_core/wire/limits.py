"""The largest size of everything that comes from somebody else.

A reader that allocates what a stranger announces can be killed by one message, so every reader takes one of these.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MAX_CONTRIBUTION_BYTES = 32 * MIB  # the body of one Contribute call; the product's goal is 10 MB
MAX_PART_BYTES = 256 * KIB  # data of one FetchPart or ContributePart: small enough for a stream to share a slow link
MAX_METADATA_BYTES = 2 * MIB  # one TUF metadata file
MAX_CHUNK_BYTES = 64 * MIB  # one content-addressed chunk, compressed or not
MAX_MANIFEST_BYTES = 1 * MIB  # one bundle manifest
MAX_SIGNED_BYTES = 1 * MIB  # one signed statement, policy or receipt
MAX_SITE_MESSAGE_BYTES = 128 * MIB  # one message between sites: a chunk or a batch sum, with overhead
MAX_GRPC_MESSAGE_BYTES = 4 * MIB  # one gRPC message; the default of gRPC, said aloud
