"""The sandbox of the `python` tool.

It owns jails: each has a warm interpreter, the zygote, that forks one process per call. Every layer
of isolation is checked before a jail serves anybody. SECURITY.md says what that promises.

Of AXPO it imports `tool_server.tool` and `tool_server.images`. It knows nothing of the tool
`tool_server.python`, which is built on it.

Start reading at `pool.py` (the jails of a server), then `process.py` (one jail and its calls),
`jail.py` (what a jail sees of the machine), `places.py` and `cgroups.py` (what each call has to
itself), `layers.py` (whether this machine has what it takes).
What runs inside a jail is in `inside/`. `attacks.py` runs the attack list of `attacks_*.md`.
"""
