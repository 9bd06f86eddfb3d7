"""Searches of shortest paths that are guided by a network's estimates of the cost to the goal."""

from classicrl.search.beam import q_beam
from classicrl.search.best_first import StopRule, astar, deferred_astar, qstar
from classicrl.search.domain import Domain
from classicrl.search.nodes import Nodes, Perimeter
from classicrl.search.open_list import OpenList
from classicrl.search.solution import Progress, QFunction, Solution, Stopped, checked_path
from classicrl.search.value import ValueFunction, q_of_children, value_of_every_action

__all__ = [
    "Domain",
    "Nodes",
    "OpenList",
    "Perimeter",
    "Progress",
    "QFunction",
    "Solution",
    "StopRule",
    "Stopped",
    "ValueFunction",
    "astar",
    "checked_path",
    "deferred_astar",
    "q_beam",
    "q_of_children",
    "qstar",
    "value_of_every_action",
]
