"""Restore drills: the throwaway cluster, the order of events, the negative control, and the evidence.

``proof`` restores and compares a copy.
"""
