"""A benchmark as a user would write it, and what is none. Tests name them by their paths."""

from axpo.evaluation.benchmark import Benchmark, Item

NUMBER = 3


class ThreeMaps(Benchmark):
    """Three questions about maps."""

    def items(self, data):
        for number, answer in enumerate(["north", "south", "east"]):
            yield Item(str(number), f"Where is map {number}?", (), (answer,))
