"""The condition of the backups as a whole: one answer for status, sensor, alert and doctor.

No Dagster, no server, no clock. Higher layers act on the answer.
"""
