"""The images that the policy's code shows: figures of matplotlib and images of PIL."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from . import protocol


class Figures:
    """Collect the images that one code shows, each at most once, in the order of showing."""

    def __init__(self, caps: protocol.Caps) -> None:
        self._caps = caps
        self._left_out = 0
        self._notes: list[str] = []
        self.pixels: list[Any] = []
        """RGB, [height, width, 3]."""
        self._take_over_show()

    @property
    def notes(self) -> list[str]:
        """Return what the policy reads about images that are not shown."""
        if not self._left_out:
            return self._notes
        most = self._caps["figures"]
        return [*self._notes, f"[{self._left_out} more figures: only {most} are shown]"]

    def show_open(self, *_: Any, **__: Any) -> None:
        """Show every open figure and close it."""
        for number in plt.get_fignums():
            self.add_figure(plt.figure(number))
        plt.close("all")

    def add_figure(self, figure: Any) -> None:
        """Draw a figure of matplotlib, if it is within the limits."""
        width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
        if self._takes(width, height):
            figure.canvas.draw()
            self.pixels.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())

    def add_image(self, image: Image.Image) -> None:
        """Take an image of PIL, if it is within the limits."""
        if self._takes(*image.size):
            self.pixels.append(np.asarray(image.convert("RGB")))

    def _take_over_show(self) -> None:
        """Make the `show` of either library, which would need a screen, bring images here."""

        def show_figure(figure: Any, *_: Any, **__: Any) -> None:
            self.add_figure(figure)

        def show_image(image: Image.Image, *_: Any, **__: Any) -> None:
            self.add_image(image)

        plt.show = self.show_open
        figure_class: Any = Figure
        figure_class.show = show_figure
        image_class: Any = Image.Image
        image_class.show = show_image

    def _takes(self, width: int, height: int) -> bool:
        """Return whether another image of this size is shown; else count or note it."""
        if len(self.pixels) >= self._caps["figures"]:
            self._left_out += 1
            return False
        most, aspect = self._caps["pixels"], self._caps["aspect"]
        short, long = min(width, height), max(width, height)
        if short >= 1 and width * height <= most and long <= aspect * short:
            return True
        limits = f"at most {most} pixels and 1:{aspect}"
        self._notes.append(f"[a figure of {width}x{height} pixels is not shown: {limits}]")
        return False
