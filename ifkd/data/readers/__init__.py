"""Readers of data sets in other formats; each returns a `ReaderResult`, or raises `DataError` for an invalid file."""
