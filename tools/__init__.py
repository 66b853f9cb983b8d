"""Commands for developers of rpn_jax. They run from a checkout: ``python -m tools.NAME``.

The wheel does not contain them.
"""
