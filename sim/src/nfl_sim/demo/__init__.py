"""The demo: the whole loop on one machine, on real data, told live.

- `command`: the verb `nfl demo`; `story`: what happens when; `fleet`: makes and runs the real fleet it happens to
- `host`, `baselines`: processes of the demo; `watch`: reads what the fleet's journals say
- `screen`, `narrator`: tell it live; `report`, `page`, `charts`: what is left in the end; `proof`: what is shown
"""

__all__: list[str] = []
