"""The signed log of backups: keys, signatures, statements, and what they vouch for.

The volume's files belong to ``core``. When something is stated is decided there, through ``core.ledger``.
"""
