"""The campaign: real processes on real backends, and everything that may go wrong with them.

Each seed is one plan of faults, alerts, crashes and bad weather. Afterwards what the backends
themselves recorded is held against what was promised: nothing lost, nothing twice, no bound
passed, nothing stuck. ``python -m tests.campaign --help`` says how to run it.
"""
