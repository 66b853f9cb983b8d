"""Several processes that compute one run: who takes part, what they exchange, and lost peers."""
