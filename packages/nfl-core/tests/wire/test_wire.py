from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from nfl_core.wire import device_pb2, enrol_pb2, limits, sites_pb2

WIRE = Path(limits.__file__).parent
FILES = [device_pb2.DESCRIPTOR, enrol_pb2.DESCRIPTOR, sites_pb2.DESCRIPTOR]


def fields_of(proto: str) -> set[tuple[str, int]]:
    text = re.sub(r"//.*", "", proto)
    return {(name, int(number)) for name, number in re.findall(r"(\w+)\s*=\s*(\d+)\s*;", text)}


@pytest.mark.parametrize("descriptor", FILES, ids=lambda descriptor: str(descriptor.name))
def test_generated_code_is_of_the_proto_file_beside_it(descriptor: FileDescriptor) -> None:
    proto = (WIRE / descriptor.name).read_text()
    found = set()
    messages = list(descriptor.message_types_by_name.values())
    while messages:
        message = messages.pop()
        if not message.GetOptions().map_entry:
            found |= {(field.name, field.number) for field in message.fields}
            messages += message.nested_types
    assert found == fields_of(proto)
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
        assert (WIRE / descriptor.name.replace(".proto", suffix)).is_file()


@pytest.mark.parametrize("descriptor", FILES, ids=lambda descriptor: str(descriptor.name))
def test_generated_imports_name_their_package(descriptor: FileDescriptor) -> None:
    for suffix in ("_pb2.py", "_pb2_grpc.py"):
        text = (WIRE / descriptor.name.replace(".proto", suffix)).read_text()
        assert not re.search(r"^import \w+_pb2", text, re.MULTILINE)


def test_methods_are_pinned() -> None:
    services = {
        service.full_name: [method.name for method in service.methods]
        for descriptor in FILES
        for service in descriptor.services_by_name.values()
    }
    assert services == {
        "nfl.device.v1.Device": ["Hello", "Contribute", "Fetch", "Report"],
        "nfl.enrol.v1.Enrolment": ["Enrol"],
    }


def test_limits_are_pinned() -> None:
    sizes = {name: value for name, value in vars(limits).items() if name.startswith("MAX_")}
    assert sizes == {
        "MAX_CONTRIBUTION_BYTES": 32 * 2**20,
        "MAX_PART_BYTES": 256 * 2**10,
        "MAX_METADATA_BYTES": 2 * 2**20,
        "MAX_CHUNK_BYTES": 64 * 2**20,
        "MAX_MANIFEST_BYTES": 2**20,
        "MAX_SIGNED_BYTES": 2**20,
        "MAX_SITE_MESSAGE_BYTES": 128 * 2**20,
        "MAX_GRPC_MESSAGE_BYTES": 4 * 2**20,
    }
    assert limits.MAX_PART_BYTES < limits.MAX_GRPC_MESSAGE_BYTES


def test_first_import_holds_grpc_to_tls_1_3() -> None:
    code = "import os, nfl_core.wire.device_pb2_grpc; print(os.environ['GRPC_SSL_CIPHER_SUITES'])"
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_SSL_CIPHER_SUITES"}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "ECDHE-PSK-AES128-CBC-SHA"
