"""Where the actors of a run stand: ranks, engines and tool servers, by one plan.

Owns the plan (pure), its table for `axpo check`, the check of the nodes before anything loads, and
its realisation on Ray. Imports the recipe and the rooms below it. Start with `plan.py`, then
`reserve.py`.
"""

from axpo.placement.cluster import Cluster, Node, uniform
from axpo.placement.inspection import inspect_nodes
from axpo.placement.plan import Bundle, Plan, make_plan, smallest_cluster
from axpo.placement.reserve import Placed, check_fits, reserved
from axpo.placement.table import placement_lines, table
from axpo.placement.units import Parts, Seat

__all__ = [
    "Bundle",
    "Cluster",
    "Node",
    "Parts",
    "Placed",
    "Plan",
    "Seat",
    "check_fits",
    "inspect_nodes",
    "make_plan",
    "placement_lines",
    "reserved",
    "smallest_cluster",
    "table",
    "uniform",
]
