"""Programs that write files of the repository: one module for each page, the site, the pictures and the translations.

``make docs`` runs those that write pages; tests compare each page with what its module renders. Nothing in the package
imports from here.
"""
