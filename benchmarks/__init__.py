"""Benchmarks: the figures of ``docs/performance.md``, measured on this machine with a real server.

``make bench`` runs all parts, ``make bench ONLY=dump`` one. A part is a module with a ``measure`` and its targets.
Results go to ``results.json``, and ``tools.performance`` renders the page from them. The program does not use this.
"""
