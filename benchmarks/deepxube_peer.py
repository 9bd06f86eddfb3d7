"""The other side of beside_deepxube.py: runs in an environment where DeepXube 0.3.2 is installed.

Works only with what that package offers, as its own commands `deepxube solve` and `deepxube train`
do. One JSON object on the command line says what to measure, one on the last line of the output
what was found. Nothing of classicrl is imported.
"""

import json
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from deepxube.base.trainer import TrainArgs
from deepxube.base.updater import UpArgs
from deepxube.factories.pathfinding_factory import get_pathfind_functions
from deepxube.factories.updater_factory import get_updater
from deepxube.nnet import nnet_utils
from deepxube.trainers.utils.train_loop import train
from deepxube.utils.command_line_utils import (
    get_domain_from_arg,
    get_heur_nnet_par_from_arg,
    get_pathfind_from_arg,
)

DOMAIN = "cube3"


def cpu_seconds() -> float:
    """Of this process and of those that it has started and waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def use_threads(count: int) -> None:
    """So many; by itself the package takes eight, however many cores there are."""
    torch.set_num_threads(count)
    nnet_utils.get_device = lambda: (torch.device("cpu"), [], False)


def search(task: dict[str, Any]) -> dict[str, Any]:
    """Q* on random cubes until so many nodes were generated, each by an own search."""
    domain, name = get_domain_from_arg(DOMAIN)
    parts, _ = get_heur_nnet_par_from_arg(domain, name, task["network"], "QFix")
    network = parts.get_nnet().eval()
    values = parts.get_nnet_fn(network, None, torch.device("cpu"), None)
    functions = get_pathfind_functions("graph_q", values, None)
    np.random.seed(0)
    runs = []
    for _ in range(task["repeats"]):
        states, goals = domain.sample_problem_instances([150])
        which = f"graph_q.{task['batch_size']}B_{task['weight']}W"
        finder = get_pathfind_from_arg(domain, functions, which)[0]
        began, began_cpu = time.perf_counter(), cpu_seconds()
        (instance,) = finder.make_instances(states, goals, None, True)
        finder.add_instances([instance])
        while instance.num_nodes_generated < task["max_nodes"] and not instance.finished():
            finder.step()
        runs.append(
            {
                "nodes": instance.num_nodes_generated,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": cpu_seconds() - began_cpu,
                "solved": instance.goal_node is not None,
            }
        )
    return {"parameters": sum(p.numel() for p in network.parameters()), "runs": runs}


def training(task: dict[str, Any], updates: int) -> dict[str, float]:
    """Trains for so many updates: what the whole of it took, start of the processes included."""
    domain, name = get_domain_from_arg(DOMAIN)
    parts, _ = get_heur_nnet_par_from_arg(domain, name, task["network"], "QFix")
    arguments = UpArgs(
        1, task["updates_per_round"], task["walk_length"], 1,
        ub_heur_solns=False, backup=1, up_batch_size=task["batch_size"],
    )  # fmt: skip
    updater = get_updater(domain, task["pathfind"], arguments, False, "heur")
    with tempfile.TemporaryDirectory() as folder:
        began, began_cpu = time.perf_counter(), cpu_seconds()
        out = sys.stdout
        try:
            train(
                domain, parts, updater, None, None, 1, folder,
                TrainArgs(task["batch_size"], updates, False, display=0),
            )  # fmt: skip
        finally:
            sys.stdout = out
        return {
            "states": float(updates * task["batch_size"]),
            "seconds": time.perf_counter() - began,
            "cpu_seconds": cpu_seconds() - began_cpu,
        }


def main() -> None:
    """Does what the command line says."""
    task = json.loads(sys.argv[1])
    use_threads(task["threads"])
    if task["what"] == "search":
        result = search(task)
    else:
        result = {"runs": [training(task, updates) for updates in task["updates"]]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
