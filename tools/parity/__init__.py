"""Compare this package with figures that the original implementation computed.

    python -m tools.parity FOLDER

- ``cases`` loads the figures and documents their format.
- ``weights`` fills a network by the rule that the figures were computed with.
- ``network`` runs this package on a case, and ``network_rows`` compares the results.
- ``picture`` does both for a picture file, ``folder`` for published keys and for recall.
- ``quantities`` and ``rows`` define what is compared and the rows of the table.
- ``compare`` holds the arithmetic. ``ties`` orders proposals with equal scores.
- ``precisions`` is a separate command. It measures what `tf32` and `bfloat16` change, on any
  pictures and weights.
"""
