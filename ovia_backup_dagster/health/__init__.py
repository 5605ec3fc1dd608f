"""The condition of the backups as a whole: one answer for status, sensor, alert and doctor.

It uses no Dagster, server or clock. Higher layers act on the answer.
"""
