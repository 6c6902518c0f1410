"""The embedded tasks: small pictures and facts that are drawn as they are asked for.

One family for each kind of tool: `small_digit` (zoom), `small_product` (python) and `small_fact`
(search). Their configurations are registered where they are defined. Nothing outside of
`axpo.tasks` needs these modules, except for benchmarks. Start reading in `generated.py`.
"""
