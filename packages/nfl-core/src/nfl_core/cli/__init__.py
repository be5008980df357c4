"""The `nfl` command; every package adds its verbs by entry points of the group `nfl.commands`."""

__all__ = ["app", "console"]
