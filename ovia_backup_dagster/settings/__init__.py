"""All settings of one database's backups, each declared once with its type. ``model`` combines the groups' modules."""
