"""Restores a backup into a target, reads the result back, and compares it with what the archive holds.

The same for a drill and for a restore. Where the target comes from, and what follows, is decided above.
"""
