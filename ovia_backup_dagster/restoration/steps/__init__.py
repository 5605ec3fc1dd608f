"""The steps of a restore: how each is taken, and how it is put back.

A step is a class that ``journal_step`` describes, in a module of its own or with its like (``services``): what it
notes before it is taken, what it does, what a person does in its place, and what undoes it. ``registry`` says in which
order a restore begins them; a new step is one module here and one line there. ``forward`` takes a step and writes the
journal, ``back`` puts a whole restore back, ``progress`` asks how far one has got. What the journal carries is stated
in ``step_data``, and when to go forward or back is decided in ``execution``.
"""
