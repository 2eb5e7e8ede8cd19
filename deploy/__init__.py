"""Run time: a bundle detects in scenes, and is measured."""
