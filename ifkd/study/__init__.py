"""Studies: train many students with one recipe and one teacher, and compare them over seeds."""
