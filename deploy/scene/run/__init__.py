"""Run the rows of tiles of a scene through an engine; interrupted runs can be resumed."""
