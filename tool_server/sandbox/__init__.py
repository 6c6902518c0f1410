"""The sandbox of the `python` tool: jails with a warm interpreter, one fork per call, every layer of isolation checked before use."""
