"""Latency, throughput and cost of engines."""
