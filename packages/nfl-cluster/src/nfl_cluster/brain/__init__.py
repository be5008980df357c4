"""The root's decisions: from sums to candidates, from candidates to versions, from versions to devices."""

from nfl_cluster.brain.brain import Brain

__all__ = ["Brain"]
