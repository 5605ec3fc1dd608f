"""The exit codes of ``ovia-backup``, besides 0 (done) and click's own 2 (usage).

Which verb exits with which, and when, is the verb's own.
"""

#: The operation failed, or what was checked is bad.
FAILED = 1
#: Of ``status`` alone, as monitoring plugins have it (0 OK, 1 WARNING, 2 CRITICAL): nothing can be said.
UNKNOWN = 3
