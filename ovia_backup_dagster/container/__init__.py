"""A container of the Swarm stack: what it does before it becomes Dagster, HAProxy or a shell, and its health."""
