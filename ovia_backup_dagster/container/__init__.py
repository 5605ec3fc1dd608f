"""The containers of the Swarm stack: what each of them does before it becomes Dagster, HAProxy or a shell."""
