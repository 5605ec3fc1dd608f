"""Every setting of one database's backups, once, typed: a module a group, and ``model``, which has them all."""
