"""Forms of the operations that exist only for XLA's CPU backend."""
