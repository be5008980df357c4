"""The order of imports decides about TLS 1.2, so it is tested in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_MAKE = "import nfl_secure.tls as t; t.enrolment_channel_credentials(None); print('made')"


def _python(code: str, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_SSL_CIPHER_SUITES"}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    return run.stdout + run.stderr


def test_credentials_are_made_when_nfl_secure_comes_first() -> None:
    assert _python(_MAKE).strip() == "made"


@pytest.mark.parametrize("env", [{}, {"GRPC_SSL_CIPHER_SUITES": "HIGH"}])
def test_grpc_imported_too_early_is_refused(env: dict[str, str]) -> None:
    assert "TlsProfileError: grpc was imported before nfl_secure" in _python(f"import grpc; {_MAKE}", **env)


def test_a_foreign_cipher_list_in_the_environment_is_overruled() -> None:
    assert _python(_MAKE, GRPC_SSL_CIPHER_SUITES="HIGH").strip() == "made"


def test_nfl_secure_needs_no_torch() -> None:
    code = "import sys, nfl_secure.egress, nfl_secure.secagg; print('torch' in sys.modules, 'nvflare' in sys.modules)"
    assert _python(code).strip() == "False False"
