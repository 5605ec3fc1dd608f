"""The names of the folders on a backup volume, beside those of the tiers.

The names of files in them belong to the modules that write them; those of a backup's files, to ``naming``.
"""

#: Evidence of restore drills.
DRILLS = "drills"
#: Plans, journals and records of restores.
RESTORES = "restores"
