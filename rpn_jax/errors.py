"""The one exception for bad input.

Everything a person can get wrong (a path, a key, a box, a weights folder) is raised as a
`UserError` whose text is one line: what was read, its value, and what would be right. The command
line prints that line and exits with code 2; anything else that escapes is a bug and keeps its
traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, told in one line that names the file, key or box, its value, and the remedy."""
