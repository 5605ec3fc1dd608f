"""Point-in-time recovery: WAL received and archived, base backups, recovery windows, and recovery itself.

PostgreSQL's own programs do the work (pg_receivewal, pg_basebackup, pg_waldump, and the server for recovery). The
files on the volume are authoritative: a window is computed from them, never remembered. Dumps belong to ``core`` and
``postgres``; how a recovered database replaces the live one belongs to ``restoration``.
"""
