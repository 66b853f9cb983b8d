"""One command that checks every claim on a GPU: ``python -m tools.gpu --out DIR``.

The sections run in order of importance. Each runs in a separate process with a time limit, so a
crash or an endless loop in one never stops the others. ``DIR/results.json`` and the table
``DIR/results.md`` are written after each section.

It runs without a network where only jax, flax, optax, orbax, numpy, torch, torchvision and pytest
are installed. A section that needs another package is skipped, or finds it in the folder of wheels
that ``--wheels`` names (``python -m tools.wheels`` makes one).

``sections`` lists the sections, ``child`` runs one of them in its own process, ``results`` holds
what is written, and ``tables`` copies the figures into ``docs/performance.md``.
"""
