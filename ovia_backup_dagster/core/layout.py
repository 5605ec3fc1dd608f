"""The names of the folders on a backup volume, besides the tiers' folders.

The modules that write the files in them define the files' names; ``naming`` defines those of a backup's files.
"""

#: Evidence of restore drills.
DRILLS = "drills"
#: Plans, journals and records of restores.
RESTORES = "restores"
#: The signed log, a folder for each database.
STATEMENTS = "statements"
#: What this host knows of its remotes, a folder for each database.
OFFSITE = "offsite"
#: Backups that were fetched from remotes: neither listed nor pruned.
FETCHED = "fetched"
#: WAL and base backups, a folder for each cluster.
PITR = "pitr"
#: Databases that were recovered to an instant, to be restored: neither listed nor pruned like backups.
RECOVERED = "recovered"
