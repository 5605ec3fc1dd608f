"""The containers of the Swarm stack: what each does before it becomes Dagster, HAProxy or a shell."""
