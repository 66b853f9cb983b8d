"""Forms of operations for XLA's CPU backend only, called through `jax.lax.platform_dependent`."""
