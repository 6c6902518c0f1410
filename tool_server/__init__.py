"""The tools that a policy may call.

This room owns their schemas, the checks on what the policy wrote, the limits of each call, and the
servers that run them. It may import `axpo.registry` and nothing else of the project: it knows
nothing of rollouts, rewards or training.

Start reading at `tool.py` (what a tool is), then follow a call: `pool.py` (the client of all
servers), `server.py` (one server), `runner.py` (the limits of one tool), and the tool itself:
`zoom.py`, `python.py` (over `sandbox/`), `search/`, `functions.py` (a function of the user's),
`mcp_tools.py` (tools of an MCP server). `config.py` is the recipe's section `tools`.
"""
