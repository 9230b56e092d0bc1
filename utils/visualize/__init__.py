"""Forecasts drawn in the exact colours of a radar legend: a strip of lead times (PNG), an animation (GIF)."""

from utils.visualize.animation import draw_animation
from utils.visualize.strip import draw_strip
from utils.visualize.style import Style, Styled, render

__all__ = ["Style", "Styled", "draw_animation", "draw_strip", "render"]
