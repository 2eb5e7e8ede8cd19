"""Readers of other people's data sets: each turns a folder into the content of one COCO file."""
