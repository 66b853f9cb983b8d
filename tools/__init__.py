"""Commands for developers of rpn_jax, run from a checkout."""
