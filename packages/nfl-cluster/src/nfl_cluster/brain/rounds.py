"""Opening a round: the policy under which devices may contribute."""

from __future__ import annotations

from datetime import datetime, timedelta

from nfl_cluster.brain.content import Content
from nfl_cluster.brain.judges import Judges
from nfl_cluster.brain.state import RootState
from nfl_cluster.brain.store import RootStore
from nfl_core.codec.quantise import modulus_bits
from nfl_core.config import FleetConfig
from nfl_core.wire import sites_pb2
from nfl_secure.identity import Principal
from nfl_secure.identity.trust import parse_certificate, spiffe_of
from nfl_secure.policy import sign_policy


def open_round(
    config: FleetConfig,
    *,
    store: RootStore,
    content: Content,
    judges: Judges,
    principal: Principal,
    now: datetime,
    lifetime: timedelta,
) -> bytes | None:
    """Make the next policy and note that it is open.

    Args:
        config: Of the fleet.
        store: The root's state; changed, not committed.
        content: What runs.
        judges: Measures the scales.
        principal: The root.
        now: Aware.
        lifetime: Of the policy.

    Returns:
        The signed policy, or None while scales cannot be measured.

    Raises:
        PolicyError: The configuration makes no policy that anybody would accept.
        LearningError: The scales cannot be measured.
    """
    state = store.state
    if content.version not in state.scales:
        scales = judges.scales(content)
        if scales is None:
            return None
        state.scales = {int(content.version): scales}
    message = _message(config, state, content)
    message.policy_id = state.policy_id + 1
    message.fleet = principal.spiffe.fleet
    message.expires_at_unix = int((now + lifetime).timestamp())
    signed = sign_policy(message, principal=principal, at=now)
    state.policy_id, state.policy_at, state.wants_policy = state.policy_id + 1, now.isoformat(), False
    store.tell("policy-opened", policy=state.policy_id, version=int(content.version), num_bases=len(message.bases))
    return signed


def _message(config: FleetConfig, state: RootState, content: Content) -> sites_pb2.RoundPolicy:
    privacy = config.privacy
    keeper_key = bytes.fromhex(state.keeper_key)
    certificate = sites_pb2.Signed.FromString(keeper_key).certificate
    message = sites_pb2.RoundPolicy(
        schema_fingerprint=content.schema.fingerprint,
        scales=state.scales[content.version],
        bits=privacy.bits,
        modulus_bits=modulus_bits(privacy.bits, privacy.batch_max * privacy.max_weight),
        n_min=privacy.n_min,
        batch_size=privacy.batch_size,
        batch_max=privacy.batch_max,
        max_weight=privacy.max_weight,
        mode=privacy.mode,
        window_ms=round(1000 * privacy.window_s),
        keeper_id=spiffe_of(parse_certificate(certificate)).name,
        keeper_key=keeper_key,
        num_values=content.schema.num_shared + 1,
    )
    for step in reversed(state.path[-(config.root.max_staleness + 1) :]):
        for region, digest in sorted(step.digests.items()):
            message.bases.add(version=step.version, region=region, digest=digest)
    return message
