"""The condition of the backups as a whole: one answer for status, sensor, alert and doctor.

Pure: no Dagster, no server, no clock. What acts on the answer stands above.
"""
