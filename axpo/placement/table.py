"""Show a plan as a table: node, GPU, who."""

from __future__ import annotations

from axpo.config import Recipe
from axpo.placement.cluster import uniform
from axpo.placement.plan import Plan, make_plan, smallest_cluster
from axpo.placement.units import Seat


def placement_lines(recipe: Recipe, nodes: tuple[int, int, float] | None = None) -> list[str]:
    """Return where the actors of a recipe will stand, for `axpo check`.

    Args:
        recipe: the run.
        nodes: how many equal nodes there are, the GPUs and the CPUs of each; None: the fewest nodes
            of at most 8 GPUs that hold the recipe.

    Raises:
        AxpoError: the recipe does not fit these nodes.
    """
    cluster = uniform(*nodes) if nodes else smallest_cluster(recipe)
    plan = make_plan(recipe, cluster)
    title = f"placement on {cluster.describe()}" if nodes else f"needs {cluster.describe()}"
    return [f"{title}:", *(f"   {line}" for line in table(plan))]


def table(plan: Plan) -> list[str]:
    """Return the lines of a plan: one for each GPU, and one for each node's actors without any."""
    rows = [("node", "GPU", "who"), *_rows(plan)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{node:<{widths[0]}}  {gpu:>{widths[1]}}  {who}" for node, gpu, who in rows]


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
    # By node in the plan's order, then GPU; those without a GPU come last (as GPU "-").
    order = {node: place for place, node in enumerate(plan.nodes)}
    on_gpu: dict[tuple[int, int], list[str]] = {}
    without: dict[int, list[str]] = {}
    for seat in sorted(plan.seats, key=_by_role):
        for number in seat.bundles:
            bundle = plan.bundles[number]
            place = order[bundle.node]
            for gpu in bundle.gpus:
                on_gpu.setdefault((place, gpu), []).append(seat.name)
            if not bundle.gpus:
                without.setdefault(place, []).append(seat.name)
    rows: list[tuple[str, str, str]] = []
    for place, node in enumerate(plan.nodes):
        gpus = sorted(gpu for at, gpu in on_gpu if at == place)
        rows += [(node.name, str(gpu), ", ".join(on_gpu[place, gpu])) for gpu in gpus]
        if place in without:
            rows.append((node.name, "-", ", ".join(without[place])))
    return rows


def _by_role(seat: Seat) -> tuple[int, int]:
    return ["rank", "engine", "tool server"].index(seat.role), seat.index
