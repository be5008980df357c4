"""Real data for worlds: where it comes from, and who owns which part of it."""

from nfl_sim.data.fashion import DataSet, enlarged_digits, load_images
from nfl_sim.data.owners import OwnerData, Shares, share_out, write_owner, write_shadow

__all__ = [
    "DataSet",
    "OwnerData",
    "Shares",
    "enlarged_digits",
    "load_images",
    "share_out",
    "write_owner",
    "write_shadow",
]
