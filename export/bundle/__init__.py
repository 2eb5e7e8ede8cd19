"""The bundle: the folder that export writes and deploy reads."""
