"""Generate the Python of the wire format from the .proto files, typed, with package-absolute imports."""

import re
import sys
from pathlib import Path

from grpc_tools import protoc

WIRE = Path(__file__).resolve().parent.parent / "packages/nfl-core/src/nfl_core/wire"


def main() -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` next to each .proto file."""
    protos = sorted(WIRE.glob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{WIRE}",
            f"--python_out={WIRE}",
            f"--grpc_python_out={WIRE}",
            f"--mypy_out={WIRE}",
            f"--mypy_grpc_out={WIRE}",
            *map(str, protos),
        ]
    )
    if code:
        raise SystemExit(f"protoc failed with code {code}")
    for generated in WIRE.glob("*_pb2*.py*"):
        text = generated.read_text()
        absolute = re.sub(r"^import (\w+_pb2)( as .*)?$", r"from nfl_core.wire import \1\2", text, flags=re.MULTILINE)
        generated.write_text(absolute)
    print(f"generated the code of {', '.join(proto.name for proto in protos)}", file=sys.stderr)


if __name__ == "__main__":
    main()
