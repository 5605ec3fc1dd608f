"""Restores that can be undone: planned, refused or confirmed, taken step by step, finished or put back.

``plan`` decides and refuses, ``steps`` takes each step and puts it back, ``restorations`` is the order of events and
what the command line and Dagster call. What is written down is ``restoration.journal``'s; SQL is ``postgres``'s, and
Docker is ``swarm``'s.
"""
