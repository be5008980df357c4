"""Contracts of a federated nested learning fleet. Each module is one noun; importing the package itself costs nothing.

`learning` needs the extra `nfl-core[torch]`; nothing else here does.
"""

__all__ = [
    "cli",
    "codec",
    "config",
    "delta",
    "durable",
    "errors",
    "ids",
    "levels",
    "metrics",
    "schema",
    "tensors",
    "wire",
]
