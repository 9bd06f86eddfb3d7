"""Solves Rubik's cubes by Q* search or a beam, with a deep Q-network.

    python agents/qstar_cube3_solve.py --scramble "R U R' U' F2 D L' B"
    python agents/qstar_cube3_solve.py --random 20 --seed 7 --json solutions.json

The network comes with the package; --network RUN takes that of a run of qstar_cube3_train.py.
Moves are in WCA notation; a cube can also be given as 54 letters of its faces, U R F D L B, each
row by row. Without --search a preset's ladder is climbed until the cube is solved. Solutions are
replayed before they are shown. `classicrl solve` is the same command; classicrl/cube_solver.py
does the work, docs/qstar.md explains it.
"""

from classicrl.command_line import exit_with, parse
from classicrl.solve_cubes import SolveConfig, solve_cubes

main = solve_cubes

if __name__ == "__main__":
    exit_with(main, parse({"default": SolveConfig()}, "default", __doc__ or ""))
