"""All settings of one database's backups, each declared once with its type: a module per group; ``model`` combines them."""
