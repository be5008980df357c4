"""Who is who in a fleet, what may leave a device, and sums that nobody can look into.

Importing this package holds grpcio to TLS 1.3. The Python binding has no option for it, but a process that offers no
usable TLS 1.2 cipher suite cannot speak TLS 1.2, and the variable that says so is read once, when `grpc` is imported.
Therefore import `nfl_secure` (or `nfl_core.wire`) before `grpc`; `nfl_secure.tls` refuses to make credentials in a
process where it happened the other way round.
"""

import os as _os
import sys as _sys

# A TLS 1.2 suite that needs a pre-shared key, which nobody configures: no TLS 1.2 handshake can end well.
# TLS 1.3 suites are not governed by this list. Source: measured with grpcio 1.85.3; see nfl_secure.tls for the
# self-test.
TLS12_CIPHER_SUITES = "ECDHE-PSK-AES128-CBC-SHA"

# Whether the variable was right when grpc read it: now, if grpc is not imported yet, else before somebody else imported
# it.
TLS13_HELD = "grpc" not in _sys.modules or _os.environ.get("GRPC_SSL_CIPHER_SUITES") == TLS12_CIPHER_SUITES
_os.environ["GRPC_SSL_CIPHER_SUITES"] = TLS12_CIPHER_SUITES

__all__ = ["authz", "egress", "errors", "identity", "messages", "policy", "rpc", "secagg", "tls"]
