"""Studies: many students under one recipe, from one teacher, seed by seed, and the table they give."""
