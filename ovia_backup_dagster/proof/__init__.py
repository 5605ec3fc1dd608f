"""Restores a backup into a target, reads the result back, and compares it with the archive.

Drills and restores share it. The callers provide the target, and decide what follows.
"""
