"""Docker Swarm: services scaled and begun anew, and the application's own health.

May import ``core`` and nothing else of ours. Dagster, PostgreSQL, settings and the terminal are not known here, nor in
which order a restore does all this.
"""
