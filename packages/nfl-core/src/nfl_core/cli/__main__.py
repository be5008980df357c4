"""`python -m nfl_core.cli` is `nfl`."""

from nfl_core.cli.app import main

main()
