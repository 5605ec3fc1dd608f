"""What it costs: the figures of ``docs/performance.md``, measured on this machine with a real server.

``make bench`` runs all parts, ``make bench ONLY=dump`` one. A part is a module with a ``measure``, which knows its
targets, too. What it finds goes to ``results.json``; ``report`` makes the page of it. The program uses nothing of this.
"""
