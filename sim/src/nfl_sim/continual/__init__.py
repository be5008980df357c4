"""Streams that change: what is learned, what is forgotten, alone and in a fleet."""
