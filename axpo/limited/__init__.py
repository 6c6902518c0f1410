"""Compute what somebody else's input may make endless, within limits.

A policy's formula, or arguments against a stranger's schema, is worked on in a process of its own
under limits of time and memory: `client.py` is what callers use, `server.py` runs in another
process and forks one child a piece of work. A template of a model folder is interrupted in its
thread (`interrupt.py`). This room imports nothing of the project.
"""
