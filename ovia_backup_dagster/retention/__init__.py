"""Which backups are promoted, kept and removed: the tiers, the plan, and the acts."""
