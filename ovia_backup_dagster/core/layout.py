"""The names of the folders on a backup volume, besides the tiers' folders.

The modules that write the files in them define the files' names; ``naming`` defines those of a backup's files.
"""

#: Evidence of restore drills.
DRILLS = "drills"
#: Plans, journals and records of restores.
RESTORES = "restores"
