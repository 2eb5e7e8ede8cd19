"""The device and the process group that networks run on."""
