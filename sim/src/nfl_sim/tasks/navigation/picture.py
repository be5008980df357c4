"""A drawing of episodes: one world from above, and the way each driver took through it.

Path("navigation.svg").write_text(picture({"nested": one, "local only": other}))
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from nfl_sim.tasks.navigation.drive import Episode
from nfl_sim.tasks.navigation.worlds import SIZE_M, World

SCALE = 50  # pixels a metre
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f")
FONT = 'font-family="sans-serif" font-size="15"'
LEGEND_PX = 22  # height of a line


def picture(episodes: Mapping[str, Episode]) -> str:
    """Return an SVG document of the ways that drivers took through one world.

    Args:
        episodes: Driver's name -> its episode; all in the same world, at most four.

    Raises:
        ValueError: The episodes are of different worlds, or there are none or too many.
    """
    worlds = {episode.world for episode in episodes.values()}
    if len(worlds) != 1 or len(episodes) > len(COLOURS):
        raise ValueError(f"{len(episodes)} episodes in {len(worlds)} worlds, expected 1 to {len(COLOURS)} in one")
    side, legend = SIZE_M * SCALE, LEGEND_PX * len(episodes) + 12
    ways = [
        part
        for place, (name, episode) in enumerate(episodes.items())
        for part in _way(name, episode, colour=COLOURS[place], legend_y=side + LEGEND_PX * (place + 1))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side:.0f} {side + legend:.0f}" {FONT}>',
            f'<rect width="{side:.0f}" height="{side + legend:.0f}" fill="#fff"/>',
            *_things(worlds.pop()),
            *ways,
            "</svg>\n",
        ]
    )


def _things(world: World) -> list[str]:
    side = SIZE_M * SCALE
    parts = [f'<rect width="{side:.0f}" height="{side:.0f}" fill="none" stroke="#444" stroke-width="4"/>']
    for x, y, radius in world.circles:
        parts.append(f'<circle cx="{_x(x)}" cy="{_y(y)}" r="{radius * SCALE:.1f}" fill="#bbb"/>')
    for x, y, length, width, angle in world.boxes:
        high, wide = length * SCALE, width * SCALE
        parts.append(
            f'<rect x="{-high / 2:.1f}" y="{-wide / 2:.1f}" width="{high:.1f}" height="{wide:.1f}" fill="#999" '
            f'transform="translate({_x(x)} {_y(y)}) rotate({-np.degrees(angle):.1f})"/>'
        )
    start, goal = world.start, world.goal
    parts.append(f'<circle cx="{_x(start[0])}" cy="{_y(start[1])}" r="7" fill="#222"/>')
    parts.append(
        f'<circle cx="{_x(goal[0])}" cy="{_y(goal[1])}" r="20" fill="none" stroke="#222" stroke-dasharray="4 3"/>'
    )
    return parts


def _way(name: str, episode: Episode, *, colour: str, legend_y: float) -> list[str]:
    end = "arrives" if episode.arrived else "collides" if episode.collided else "is late"
    points = " ".join(f"{_x(x)},{_y(y)}" for x, y, _ in episode.path)
    x, y, _ = episode.path[-1]
    mark = (
        f'<path d="M-7,-7L7,7M-7,7L7,-7" transform="translate({_x(x)} {_y(y)})" stroke="{colour}" stroke-width="4"/>'
        if not episode.arrived
        else f'<circle cx="{_x(x)}" cy="{_y(y)}" r="6" fill="{colour}"/>'
    )
    told = f"{escape(name)}: {end} after {len(episode.path) - 1} steps"
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="3"/>',
        mark,
        f'<text x="10" y="{legend_y:.0f}" fill="{colour}">{told}</text>',
    ]


def _x(metres: float) -> str:
    return f"{metres * SCALE:.1f}"


def _y(metres: float) -> str:
    return f"{(SIZE_M - metres) * SCALE:.1f}"  # y points up in the world, down on paper
