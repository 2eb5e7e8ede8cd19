"""Readers of data sets in other formats; each returns a `ReaderResult`, from which a COCO file is written.

A reader raises `DataError` if a file is missing or malformed.
"""
