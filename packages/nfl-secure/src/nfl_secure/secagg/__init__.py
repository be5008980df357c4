"""Sealed mode: a leaf adds masked vectors, a keeper adds masks, the root subtracts one sum from the other.

Whoever sees vectors sees no seed, whoever sees seeds sees no vector, and a single contribution can be uncovered only by
leaf and keeper together. A device says one thing and may vanish: a contribution is in both sums or in neither.
"""

from nfl_secure.secagg.batch import BatchBook, ClosedBatch, add_masked
from nfl_secure.secagg.contribution import OpenedContribution, Statement, open_contribution, read_statement
from nfl_secure.secagg.keeper import Keeper
from nfl_secure.secagg.prg import mask_values
from nfl_secure.secagg.seal import SealContext, open_seed, seal_seed
from nfl_secure.secagg.unmask import BatchTotal, batch_of, unmask

__all__ = [
    "BatchBook",
    "BatchTotal",
    "ClosedBatch",
    "Keeper",
    "OpenedContribution",
    "SealContext",
    "Statement",
    "add_masked",
    "batch_of",
    "mask_values",
    "open_contribution",
    "open_seed",
    "read_statement",
    "seal_seed",
    "unmask",
]
