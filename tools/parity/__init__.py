"""The same numbers as the reference: measured against figures that the original computed.

    python -m tools.parity FOLDER

``cases`` reads a folder of such figures and ``weights`` fills a network by the rule they were made
with. ``network`` runs this package on a case, ``network_rows`` measures how far it is from the
figures; ``picture`` and ``folder`` do both for their kinds of case. Each lists its quantities
(``quantities``) and makes rows of the table (``rows``). ``compare`` holds the arithmetic, ``ties``
what equal scores need. ``precisions`` measures what the other precisions change, on any pictures
and weights. The format of a case is in ``docs/parity.md``.
"""
