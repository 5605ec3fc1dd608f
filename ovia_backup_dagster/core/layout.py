"""The names of the folders that stand on a backup volume, beside those of the tiers.

How a file in them is called is the business of the module that writes it; a backup's own files are ``naming``'s.
"""

#: Evidence of restore drills.
DRILLS = "drills"
#: Plans, journals and records of restores.
RESTORES = "restores"
