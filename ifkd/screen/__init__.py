"""Screens: small networks that find the tiles of a scene that are worth searching."""
