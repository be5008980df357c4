from __future__ import annotations

import numpy as np

from nfl_secure.secagg import unmask

from .fleet import Fleet


def test_unmasked_total_is_the_exact_sum_of_what_devices_put_in(fleet: Fleet) -> None:
    policy = fleet.open_policy()
    closed = fleet.closed_batch(policy, "a", "b", "c", "d", weights={"b": 2})
    answer = fleet.keeper.answer(closed.roster(fleet.leaf))
    total = unmask(
        closed.batch_sum(fleet.leaf, region="north"), answer, policy=policy, ca_pem=fleet.ca_pem, at=fleet.clock()
    )
    inputs = [fleet.witness.seen[i] for i in closed.contribution_ids]
    np.testing.assert_array_equal(total.counts_P, sum(counts for counts, _ in inputs))
    assert (total.weight, total.num, total.base.region) == (5, 4, "north")
