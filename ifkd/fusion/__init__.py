"""IFKD's three modules as pure functions: EDE (disturbance), FDR (frequency), HSM (hyperbolic)."""
