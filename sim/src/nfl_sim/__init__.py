"""Worlds for the product: real data, fleets of real agents, faults, and the demo. Never imported by the product.

A simulated device is the real agent with another data source, clock or link; nothing here replaces a part of the
product by something that only looks like it.

- `data`: real data sets and how they are shared out among owners
- `demo`: the whole loop on one machine, told live
- `faults`: agents that misbehave on purpose
- `campaigns`: long proofs with a count
"""

__all__: list[str] = []
