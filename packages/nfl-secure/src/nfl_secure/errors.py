"""The errors this package adds to the tree of `nfl_core.errors`.

```
VerificationError
+-- IdentityError
|   +-- UsedTokenError             identity.token-used
+-- ExpiredError
|   +-- ExpiredTokenError          identity.token-expired
+-- PolicyError
|   +-- RosterRefusedError         secagg.roster-refused
|   +-- UnmaskRefusedError         secagg.unmask-refused
+-- TlsProfileError                tls.profile
```
"""

from __future__ import annotations

from nfl_core.errors import ExpiredError, IdentityError, PolicyError, VerificationError


class UsedTokenError(IdentityError):
    """An enrolment token was redeemed before."""

    code = "identity.token-used"
    hint = "ask for a new token with `nfl fleet token`; if nobody of yours used this one, revoke the device that did"


class ExpiredTokenError(ExpiredError):
    """An enrolment token came too late."""

    code = "identity.token-expired"
    hint = "ask for a new token with `nfl fleet token` and use it within its lifetime"


class RosterRefusedError(PolicyError):
    """The keeper does not answer a roster, because an answer could uncover somebody's contribution.

    Args:
        message: What is wrong with the roster.
        batch_id: The batch it is about, as the roster says.
        reason: One word for programs, such as `small-batch`.
    """

    code = "secagg.roster-refused"
    hint = "its devices contribute again under the next policy; if this repeats, the leaf is faulty or lies"

    def __init__(self, message: str, *, batch_id: str, reason: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.reason = reason


class UnmaskRefusedError(PolicyError):
    """Batch sum and mask sum do not belong together, or what they uncover cannot be a sum of honest contributions."""

    code = "secagg.unmask-refused"
    hint = "drop the batch; its leaf, its keeper or one of its devices is faulty or lies"


class TlsProfileError(VerificationError):
    """This process or a peer would accept less than TLS 1.3 with certificates on both sides."""

    code = "tls.profile"
    hint = (
        "import nfl_secure before grpc, keep grpcio in the range of nfl-secure, and leave GRPC_SSL_CIPHER_SUITES alone"
    )
