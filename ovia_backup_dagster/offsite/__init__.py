"""Copies of backups on remotes: sent, checked, kept by a retention of their own, and fetched back.

A remote is reached by the rclone program; an archive is encrypted by the age program. What counts as a backup there is
decided by the signed log (``signing``). Local files belong to ``core``.
"""
