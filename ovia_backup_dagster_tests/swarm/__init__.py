"""The stack on a real Docker engine in swarm mode, from nothing: ``make test-swarm``. Needs root, and a machine on
which no other engine runs.
"""
