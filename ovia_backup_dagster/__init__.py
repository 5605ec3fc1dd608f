"""PostgreSQL backups for Ovia: proven restorable, and somebody is told when they are not.

Layers, each of which may import only what stands to its right::

    definitions, cli  ->  defs, demo  ->  postgres  ->  core

``settings`` is read at the two edges, ``definitions`` and ``cli``, and handed inward as values.
This module holds nothing but the version, so that importing a part never imports the whole.
"""

__version__ = "0.1.0"
