"""Every setting of one database's backups, once, typed: a module per group, and ``model``, which combines them."""
