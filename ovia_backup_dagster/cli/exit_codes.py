"""The exit codes of ``ovia-backup``, besides 0 (done) and click's own 2 (usage).

Each command's module says when it uses which code.
"""

#: The operation failed, or the checked backup is bad.
FAILED = 1
#: Only ``status``, as in monitoring plugins (0 OK, 1 WARNING, 2 CRITICAL): the condition cannot be determined.
UNKNOWN = 3
