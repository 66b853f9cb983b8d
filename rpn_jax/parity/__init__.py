"""The same numbers as the reference: measured against figures that the original computed.

    python -m rpn_jax.parity FOLDER

``cases`` reads a folder of such figures and ``weights`` fills a network by the rule they were made
with. ``network``, ``picture`` and ``folder`` run this package and measure how far it is from them:
each lists its quantities (``quantities``) and makes rows of the table (``rows``). ``compare`` holds
the arithmetic, ``ties`` what equal scores need. The format of a case is in ``docs/parity.md``.
"""
