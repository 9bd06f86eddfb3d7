"""Search domains: shortest-path problems whose states are rows of bytes."""

from classicrl.domains.cube3 import (
    Cube3,
    format_moves,
    from_facelets,
    half_turn_length,
    parse_moves,
    random_scrambles,
    to_facelets,
    turned,
)
from classicrl.domains.lights_out import LightsOut
from classicrl.domains.pancake import Pancake
from classicrl.domains.sliding_puzzle import SlidingPuzzle
from classicrl.domains.walks import Walks, no_undo, random_walks

__all__ = [
    "Cube3",
    "LightsOut",
    "Pancake",
    "SlidingPuzzle",
    "Walks",
    "format_moves",
    "from_facelets",
    "half_turn_length",
    "no_undo",
    "parse_moves",
    "random_scrambles",
    "random_walks",
    "to_facelets",
    "turned",
]
