"""Stand-ins that tests share: engines, scenes, runtimes and servers."""
