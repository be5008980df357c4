"""The wire format: three .proto files, the code generated from them, and the limits every reader keeps.

`device.proto` is what a device and its leaf say, `enrol.proto` how a device joins, `sites.proto` what sites say and how
things are signed. The generated modules are checked in; `nox -s wire` makes them anew.
"""

import os

# Holds grpcio to TLS 1.3: the only TLS 1.2 suite left is one that no certificate can use. gRPC reads it once, when it
# is imported, and this package is where the product's first `import grpc` happens.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-AES128-CBC-SHA")

__all__ = ["limits"]
