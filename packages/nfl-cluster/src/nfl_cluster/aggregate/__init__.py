"""From contributions to a candidate: batches at the leaf; buffer and robust rule at the root. No torch."""

__all__ = ["batches", "buffer", "reputation", "robust", "suspicion"]
