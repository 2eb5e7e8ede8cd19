"""Many scenes, and many engines: in this process one after another, or on Ray."""
