"""From contributions to a candidate: batches at the leaf; buffer, robust rule and server step at the root. No torch here."""

__all__ = ["batches", "buffer", "robust", "server"]
