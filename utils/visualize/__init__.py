"""Strips and animations of forecasts, in the exact colours of a legend."""

from utils.visualize.animation import draw_animation
from utils.visualize.page import panel_size
from utils.visualize.strip import draw_strip
from utils.visualize.style import Coordinates, Style, Styled, render

__all__ = ["Coordinates", "Style", "Styled", "draw_animation", "draw_strip", "panel_size", "render"]
