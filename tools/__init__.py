"""Programs that write files of the repository: a module for each page, and for the site, pictures and translations.

``make docs`` runs those that write pages; tests compare each page with what its module renders. Nothing in the package
imports from here.
"""
