"""Tests. Real PostgreSQL 16, real files, real processes; layout mirrors the package."""
