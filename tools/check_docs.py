"""Check the documentation: relative links lead somewhere, Python blocks marked `run` run, every decision is listed."""

import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```python run\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Return every Markdown page of the repository."""
    tops = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
    return [
        *(REPO / top for top in tops),
        *sorted((REPO / "docs").rglob("*.md")),
        *sorted((REPO / "packages").glob("*/README.md")),
        REPO / "sim/README.md",
        REPO / "hil/README.md",
    ]


def problems_of(page: Path) -> list[str]:
    """Return what is wrong with one page, one line a problem."""
    text, where = page.read_text(), page.relative_to(REPO)
    targets = [target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]
    found = [f"{where}: the link {target} leads nowhere" for target in targets if not (page.parent / target).exists()]
    for block in BLOCK.findall(text):
        try:
            exec(compile(block, str(where), "exec"), {"__name__": "docs"})
        except Exception as error:  # noqa: BLE001  # a process boundary: whatever a block raises is a finding
            found.append(f"{where}: a block marked to run failed: {type(error).__name__}: {error}")
    return found


def main() -> None:
    """Print the problems and fail when there are any."""
    index = (REPO / "docs/adr/README.md").read_text()
    found = [problem for page in pages() for problem in problems_of(page)]
    found += [
        f"docs/adr/README.md does not list {adr.name}"
        for adr in (REPO / "docs/adr").glob("0*.md")
        if adr.name not in index
    ]
    print(
        "\n".join(found) or f"{len(pages())} pages: links, blocks and the list of decisions are right", file=sys.stderr
    )
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
