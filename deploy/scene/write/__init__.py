"""Result files of a scene."""
