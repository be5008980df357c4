"""Attacks on a fleet by its own devices, leaves and root, and a fleet in one process to try them on."""
