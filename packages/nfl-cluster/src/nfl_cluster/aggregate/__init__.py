"""From contributions to a candidate: batches at the leaf; buffer, robust rule, server step at the root. No torch."""

__all__ = ["batches", "buffer", "reputation", "robust", "server", "suspicion"]
