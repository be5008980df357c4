"""Contracts of a federated nested learning fleet; see the modules, each is one noun."""

__all__: list[str] = []
