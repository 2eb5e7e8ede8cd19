"""Procedural optical imagery of ships: one imaginary world, seen as labelled tiles and as wide-swath scenes."""
