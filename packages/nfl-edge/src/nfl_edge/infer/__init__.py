"""Engines that run a bundle's graph with the device's tensors."""

from nfl_edge.infer.engine import Engine, Outputs
from nfl_edge.infer.ort import OrtEngine

__all__ = ["Engine", "OrtEngine", "Outputs"]
