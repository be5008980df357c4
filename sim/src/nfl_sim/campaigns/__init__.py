"""Long proofs with a count; run by `nox -s campaign -- NAME COUNT`."""

__all__: list[str] = []
