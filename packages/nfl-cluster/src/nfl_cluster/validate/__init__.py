"""Judging before publishing: gates on held-out data (ONNX Runtime), and a shadow update that measures scales (torch)."""

__all__ = ["data", "gates", "shadow"]
