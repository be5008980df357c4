"""Before publishing: gates on held-out data (ONNX Runtime), a shadow update that measures scales (torch)."""

__all__ = ["data", "gates", "shadow"]
