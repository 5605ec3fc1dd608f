"""All of a restore drill: the throwaway cluster, the order of events, the negative control, and the evidence.

How a copy is restored and compared is the business of ``proof``.
"""
