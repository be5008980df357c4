"""What the methods of federated learning are worth: ours and every baseline on the same data, steps and passes.

`nox -s bench -- learning quick` takes some minutes, `full` hours; both go on where they were cut.
"""

import argparse
import statistics
from pathlib import Path

from _measure import finish

from nfl_core.durable import write_file
from nfl_sim.learning.page import render
from nfl_sim.learning.plan import PLANS, plan_of
from nfl_sim.learning.run import RESULTS, run_all
from nfl_sim.learning.table import of, savings, section_table


def main(*arguments: object) -> None:
    """Run a plan; print tables, then one JSON line; write results, tables and a page."""
    parser = argparse.ArgumentParser(prog="nox -s bench -- learning", description=__doc__)
    parser.add_argument("plan", nargs="?", default="quick", choices=sorted(PLANS), help="what to run (default: quick)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...; deviations need two (default: 3)")
    parser.add_argument("--scenes", nargs="*", default=[], help="only these scenes")
    parser.add_argument("--methods", nargs="*", default=[], help="only these methods")
    parser.add_argument("--out", type=Path, default=Path(".nfl/learning"), help="results, tables and page stand here")
    parser.add_argument("--cache", type=Path, default=Path(".nfl/data"), help="keeps the images")
    chosen = parser.parse_args([str(argument) for argument in arguments])
    sections = plan_of(chosen.plan, only_scenes=chosen.scenes, only_methods=chosen.methods)
    wanted = [key for section in sections for key in section.runs(range(chosen.seeds))]
    rows = run_all(wanted, out=chosen.out, cache=chosen.cache, say=lambda line: print(line, flush=True))
    parts = [section_table(section, rows) for section in sections]
    for section in sections:
        if "fedavg" in section.methods and any(name.startswith("bits") for name in section.methods):
            parts += [savings(rows, scene, section.methods) for scene in section.scenes]
    text = "\n".join(parts)
    write_file(chosen.out / "tables.md", text.encode())
    write_file(chosen.out / "page.html", render(sections, rows).encode())
    print(f"{text}\nresults: {chosen.out / RESULTS}; picture: {chosen.out / 'page.html'}")
    finish("learning", **_figures(rows), runs=len(rows))


def _figures(rows) -> dict[str, object]:
    scenes = dict.fromkeys(scene for scene, _, _ in rows)
    by_method = {
        method: {
            f"{scene}_accuracy_percent": statistics.fmean(r.weighted for r in of(rows, scene, method))
            for scene in scenes
            if of(rows, scene, method)
        }
        for method in dict.fromkeys(method for _, method, _ in rows)
    }
    return {"ours": by_method.pop("nested", {}), "against": by_method}
