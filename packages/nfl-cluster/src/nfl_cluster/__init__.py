"""The cluster of a fleet: services of root, leaves and keeper, and NVIDIA FLARE as the courier between them.

- `mailbox`: the durable post office of a site; `flare`: the couriers and everything else that imports nvflare
- `gateway`, `leaf`: what devices talk to, and the leaf's service around it
- `keeper`: the service that holds mask seeds; `root`: aggregation, gates, publishing, rollout
- `aggregate`, `validate`, `registry`, `rollout`: the rooms of the root's decisions
- `processes`, `init`, `commands`: making, starting and watching a fleet; the verbs `nfl cluster`, `fleet` and `status`

Modules are imported by name; the package itself exports nothing, so that a courier never loads a service.
"""

__all__: list[str] = []
