"""How fast and how true: latency, parity with the reference, metrics."""
