"""Compute what somebody else's input may make endless, in processes with limits.

A policy's formula, arguments against a stranger's schema, a template of a model folder: each is
worked on in a process of its own, under limits of time and memory. `client.py` is what callers use;
`server.py` runs in another process and forks one child a piece of work. This room imports nothing
of the project.
"""
