"""Screens: find the tiles of a scene that are worth searching, and skip the others."""
