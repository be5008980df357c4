"""How a displacement becomes integers and integers become bytes: quantise, pack, frame, compress."""

__all__ = ["entropy", "frame", "quantise"]
