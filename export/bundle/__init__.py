"""The bundle on disk: what export writes and deploy reads. Imports no torch."""
