"""The steps of a restore: how each is taken, and how it is put back.

A step is a class with the interface of ``journal_step``, in its own module or with related steps (``services``). It
defines what is noted before it is taken, what it does, what an operator does instead, and how it is undone.
``registry`` holds the order of a new restore's steps; a new step is one module here and one line there. ``forward``
takes a step and writes the journal, ``back`` puts a whole restore back, ``progress`` tells how far a restore has got.
The journal's data is defined in ``step_data``; ``execution`` decides when to go forward or back.
"""
