"""Benchmarks: they measure what they say, on tiny sizes. No test looks at a time."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from classicrl.algorithms.dqn import FAMILY
from classicrl.checkpoint import save_model
from classicrl.domains import Cube3
from classicrl.errors import UserError
from classicrl.networks import atari_q_network
from classicrl.networks.byte_q_network import ByteQNetwork

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "report",
    "atari_dqn",
    "beside_deepxube",
    "busy_machine",
    "compile",
    "control_comparison",
    "cube_solver",
    "linear_layers",
    "ppo_rnd_atari",
    "qstar",
    "replay",
    "rnd_small",
    "value_bias",
    "search_rate",
    "sb3_continuous",
    "seeds_together",
    "symphony",
    "update_profile",
    "value_family",
    "sb3_dqn_atari",
)


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The programs import each other by name, as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def tiny_dqn(**settings: Any) -> Any:
    return load("atari_dqn").Config(
        torso="small",
        device="cpu",
        threads=1,
        repeats=2,
        steps=9,
        updates=3,
        play_steps=5,
        fill_steps=50,
        warmup_steps=4,
        replay_capacity=600,
        matrix_size=48,
        **settings,
    )


def tiny_replay(**settings: Any) -> Any:
    return load("replay").Config(
        capacity=300,
        num_envs=3,
        batch_sizes=(5, 7),
        device="cpu",
        threads=1,
        repeats=2,
        add_calls=11,
        sampled=20,
        stream_steps=40,
        episode_steps=9,
        fading_capacities=(12, 30),
        fading_batch_size=7,
        fading_replication=3,
        **settings,
    )


# -- What needs no other library ---------------------------------------------------------------


def test_dqn_of_classicrl_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py")
    atari_dqn = load("atari_dqn")
    kept = tmp_path / "here" / "machine.json"
    atari_dqn.main(tiny_dqn(peer="none", num_envs=(1,), own_num_envs=(6,), json=kept))
    result = json.loads(kept.read_text())["atari_dqn"]
    assert [row["num_envs"] for row in result["rows"]] == [1, 6]
    # Each number of steps is rounded up to whole updates and whole steps of all environments.
    assert [row["per_repeat"]["training"] for row in result["rows"]] == [12, 12]
    assert [row["per_repeat"]["updates"] for row in result["rows"]] == [3, 3]
    for row in result["rows"]:
        (side,) = row["sides"].values()
        assert side["training_updates"] == 2 * row["per_repeat"]["training"] // 4
        assert len(side["training"]["wall_seconds"]) == 2
    shown = capsys.readouterr().out
    assert "6 envs: updates" in shown and "stable-baselines3" not in shown


@pytest.mark.parametrize(("num_envs", "at_once"), [(1, 1), (2, 1), (3, 3), (6, 3), (8, 2)])
def test_grouping_of_updates_keeps_one_per_four_steps(num_envs: int, at_once: int) -> None:
    atari_dqn = load("atari_dqn")
    assert atari_dqn.updates_at_once(num_envs) == at_once
    steps = atari_dqn.rounded_up(17, num_envs)
    assert steps >= 17 and steps % 4 == steps % num_envs == 0


def test_flops_are_those_of_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = atari_q_network("small", "q", 5)
    obs = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    forward, backward = load("atari_dqn").count_flops(network, obs)
    with FlopCounterMode(display=False) as counter:
        q = network(obs).q
    assert forward == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        q.sum().backward()
    assert backward == counter.get_total_flops()


def test_flops_of_a_layer_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(30, 7))
    forward, backward = load("atari_dqn").count_flops(network, torch.zeros(1, 3, 3, 4))
    convolution, linear = 2 * (5 * 2 * 3) * (3 * 2 * 2), 2 * 30 * 7
    assert (forward, backward) == (convolution + linear, convolution + 2 * linear)


def test_replay_of_classicrl_alone(tmp_path: Path) -> None:
    replay = load("replay")
    kept = tmp_path / "machine.json"
    replay.main(tiny_replay(peer="none", json=kept))
    result = json.loads(kept.read_text())["replay"]
    (record,) = result["replays"].values()
    # A ninth of the transitions or so need a row for their last observation too.
    assert 7_072 * 1.05 < record["nbytes"] / record["num_transitions"] < 7_072 * 1.4
    assert result["per_repeat"] == {"add": 33, "sample 5": 20, "sample 7": 21}
    table, fading = replay.tables(result)
    assert [row[0] for row in table.rows] == [
        "added, 3 at once",
        "sampled, 5 at once",
        "sampled, 7 at once",
        "bytes per transition",
    ]
    records = result["fading"]
    assert [(r["capacity"], r["num_writes"]) for r in records] == [
        *((12, 0), (12, 6), (12, 16)),
        *((30, 0), (30, 15), (30, 40)),
    ]
    assert all(record["calls"] == 3 for record in records)  # 20 draws, 7 at once
    assert [row[0].partition(",")[0] for row in fading.rows] == ["12"] * 3 + ["30"] * 3
    del result["fading"]  # as results of earlier versions are
    assert replay.tables(result) == [table]


def test_fading_table_by_hand() -> None:
    def timing(*seconds: float) -> dict[str, list[float]]:
        return {"wall_seconds": list(seconds)}

    record = {
        "capacity": 8_192,
        "state": "half renewed",
        "calls": 4,
        "jobs": {
            "fading": timing(8e-6, 24e-6),
            "uniform": timing(4e-6, 4e-6),
            "fading batch": timing(40e-6, 40e-6),
            "uniform batch": timing(20e-6, 80e-6),
            "fading ages": timing(4e-6, 4e-6),
            "uniform ages": timing(1e-6, 1e-6),
        },
    }
    settings = {"fading_batch_size": 5, "repeats": 2}
    result = {"config": settings, "threads": 1, "device": "cpu", "fading": [record]}
    (row,) = load("replay").fading_table(result).rows
    assert row == (
        "8,192, half renewed",
        *("4.0 (2.0-6.0)", "4.00 (2.00-6.00)"),
        *("10.0 (10.0-10.0)", "1.25 (0.50-2.00)"),
        *("1.0 (1.0-1.0)", "4.00 (4.00-4.00)"),
    )


def test_capacities_that_copies_of_a_warm_up_do_not_fill() -> None:
    replay = load("replay")
    config = dataclasses.replace(tiny_replay(peer="none"), fading_capacities=(30, 31))
    with pytest.raises(UserError, match="multiples of --fading-replication 3"):
        replay.measure(config)


def test_profile_of_an_update(tmp_path: Path) -> None:
    update_profile = load("update_profile")
    kept = tmp_path / "machine.json"
    update_profile.main(
        update_profile.Config(
            torso="small", batch_size=3, updates=2, replay_capacity=120, json=kept
        )
    )
    result = json.loads(kept.read_text())["update_profile"]
    # Two convolutions, forwards in both networks and backwards in one.
    assert result["operators"]["aten::convolution_backward"]["calls_per_update"] == 2
    assert result["operators"]["aten::_fused_adam_"]["calls_per_update"] == 1
    (table,) = update_profile.tables(result)
    shares = [float(row[3].rstrip("%")) for row in table.rows]
    assert shares[-1] == 100.0 and sum(shares[:-1]) == pytest.approx(100.0, abs=1.0)


def test_cost_of_the_family(tmp_path: Path) -> None:
    value_family = load("value_family")
    kept = tmp_path / "machine.json"
    value_family.main(
        value_family.Config(
            torsos=("small",), batch_size=3, updates=2, repeats=2, replay_capacity=120, json=kept
        )
    )
    result = json.loads(kept.read_text())["value_family"]
    sizes = {m: r["num_parameters"] for m, r in result["torsos"]["small"].items()}
    assert list(sizes) == list(FAMILY)
    behaviour = (2592 + 1) * 64 + (64 + 1) * 6
    assert sizes["va"] == sizes["dueling-behaviour"] == sizes["dueling"] + behaviour
    (table,) = value_family.tables(result)
    assert [row[0] for row in table.rows] == list(sizes)
    assert table.rows[1][-1] == "1.000 (1.000-1.000)"  # dueling beside itself


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(180)  # six processes import torch, half of them beside a busy one
def test_updates_alone_and_beside_a_busy_process(tmp_path: Path) -> None:
    busy_machine = load("busy_machine")
    kept = tmp_path / "machine.json"
    config = busy_machine.Config(threads=1, batch_size=7, seconds=0.05, repeats=1, json=kept)
    busy_machine.main(config)
    (table,) = busy_machine.tables(json.loads(kept.read_text())["busy_machine"])
    kinds = ["1 threads", "1 threads, GOMP_SPINCOUNT=1000", "1 thread"]
    assert [row[0] for row in table.rows] == kinds
    assert all(float(row[1].split()[0]) > 0 for row in table.rows)


def test_compiled_beside_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling itself is left out here: it takes long."""
    module = load("compile")
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(module, "compile_networks", lambda *networks: compiled.extend(networks))
    kept = tmp_path / "machine.json"
    config = module.Config(cases=("cartpole",), threads=1, updates=2, repeats=3, json=kept)
    module.main(config)
    assert len(compiled) == 2
    result = json.loads(kept.read_text())["compile"]
    (table,) = module.tables(result)
    ((words, plain, _, ratio, _),) = table.rows
    of_kind = result["cases"]["cartpole"]
    seconds = {kind: of_kind[kind]["wall_seconds"] for kind in ("plain", "compiled")}
    assert words == "CartPole, 3 seeds, batch 64" and len(seconds["plain"]) == 3
    assert plain.split()[0] == f"{2 / sorted(seconds['plain'])[1]:,.1f}"
    middle = sorted(a / b for a, b in zip(seconds["plain"], seconds["compiled"], strict=True))[1]
    assert ratio.split()[0] == f"{middle:,.2f}"
    with pytest.raises(UserError, match="--cases pong: there are atari-small, "):
        module.main(dataclasses.replace(config, cases=("pong",)))


def test_linear_layers_side_by_side(tmp_path: Path) -> None:
    linear_layers = load("linear_layers")
    kept = tmp_path / "machine.json"
    linear_layers.main(linear_layers.Config(batch_size=5, passes=1, repeats=2, json=kept))
    result = json.loads(kept.read_text())["linear_layers"]
    (table,) = linear_layers.tables(result)
    assert [row[0].split(": ")[1] for row in table.rows] == [
        "3136 to 1024",
        "2592 to 512",
        "1024 to 256",
    ]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(180)
def test_seeds_together_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates are those of all seeds of all processes, from the rows after the first update."""
    pytest.importorskip("minatar")
    seeds_together = load("seeds_together")
    monkeypatch.setattr(seeds_together, "available_cpus", lambda: 1)
    config = seeds_together.Config(
        members=("dqn",), num_seeds=(3,), steps=4_000, repeats=1, json=tmp_path / "machine.json"
    )
    result = seeds_together.main(config)
    environments = result["environments"]
    tables = seeds_together.tables(result)
    assert list(environments) == [table.title.split(",")[0] for table in tables]
    assert list(environments) == ["CartPole-v1", "MinAtar/Breakout-v1"]
    for table, members in zip(tables, environments.values(), strict=True):
        rates = members["dqn"]
        assert all(rate > 0 for side in rates.values() for rate in side)
        (row,) = table.rows
        one, each, apart = (
            rates[side][0] for side in ("3 in one process", "3 on each core", "apart")
        )
        shown = [cell.split()[0] for cell in row[2:]]  # the median, without the range
        assert row[:2] == ("dqn", "3")
        assert shown[:3] == [f"{one:,.0f}", f"{each:,.0f}", f"{apart:,.0f}"]
        assert shown[3:] == [f"{one / apart:,.2f}", f"{each / apart:,.2f}"]
        assert len(table.header) == len(row)


def tiny_cube_network(path: Path, function: str, seed: int = 0) -> Path:
    """Of Q or of V."""
    domain = Cube3(12)
    sizes = {"embedding_size": 8, "hidden_size": 8, "num_blocks": 1}
    network = ByteQNetwork(
        domain.feature_offsets, domain.num_features, {"q": 12, "v": 1}[function],
        generator=torch.Generator().manual_seed(seed), **sizes,
    )  # fmt: skip
    card = {"domain": "cube3", "actions": "12", "function": function}
    save_model(path, network.state_dict(), card | {k: str(v) for k, v in sizes.items()})
    return path


@pytest.fixture
def cube_network(tmp_path: Path) -> Path:
    """A tiny network for the cube."""
    return tiny_cube_network(tmp_path / "cube.safetensors", "q")


def test_rate_of_a_search(tmp_path: Path, cube_network: Path) -> None:
    search_rate, kept = load("search_rate"), tmp_path / "machine.json"
    config = search_rate.Config(
        network=cube_network, batch_size=50, max_nodes=900, parts=3, repeats=2, threads=1, json=kept
    )
    result = search_rate.main(config)
    assert [len(search["rates"]) for search in result["searches"]] == [3, 3]
    (table,) = search_rate.tables(json.loads(kept.read_text())["search_rate"])
    assert [row[0] for row in table.rows][:2] == [
        "nodes/s from 0 to 300",
        "nodes/s from 300 to 600",
    ]


def test_searches_side_by_side_go_on_where_they_stopped(tmp_path: Path, cube_network: Path) -> None:
    qstar, kept = load("qstar"), tmp_path / "qstar.json"
    config = qstar.Config(
        network_12=cube_network, actions=(12,), cubes=(2,), weights=(0.5,), batch_sizes=(40,),
        max_nodes=300, threads=1, json=kept,
    )  # fmt: skip
    first = dataclasses.replace(config, searches=("qstar",))
    assert list(qstar.main(first)["cells"]) == ["12 qstar 40 0.5"]
    cells = qstar.main(config)["cells"]
    assert len(cells) == 4
    # A search goes on to the next cube for as long as it solves them.
    for cubes in cells.values():
        solved = [cube["solved"] for cube in cubes]
        assert all(solved[:-1]) and (len(cubes) == 2 or not solved[-1])
    part = dataclasses.replace(config, searches=("astar",), weights=(0.5, 0.7), cubes=(1,))
    said = qstar.main(part)["config"]  # of all that is there
    assert said["cubes"] == [2] and said["weights"] == [0.5, 0.7] and len(said["searches"]) == 4
    longer = qstar.main(dataclasses.replace(config, cubes=(3,)))["cells"]
    assert all(longer[key][: len(cubes)] == cubes for key, cubes in cells.items())
    other = tiny_cube_network(tmp_path / "other.safetensors", "q", seed=1)
    changes: dict[str, Any]
    for changes, message in (
        ({"seed": 8}, "with another seed: name another --json"),
        ({"threads": 2, "max_nodes": 9}, "with another max_nodes, threads"),
        ({"network_12": other}, "with another network 12"),
        ({"cubes": (3, 2)}, "--cubes needs a number for each of --actions 12"),
    ):
        with pytest.raises(UserError, match=message):
            qstar.main(dataclasses.replace(config, **changes))
    assert list(qstar.main(config)["networks"]) == ["12"]


def test_searches_with_a_network_of_values_have_rows_of_their_own(
    tmp_path: Path, cube_network: Path
) -> None:
    qstar, of_v = load("qstar"), tiny_cube_network(tmp_path / "v.safetensors", "v")
    config = qstar.Config(
        network_12=cube_network, value_network_12=of_v, actions=(12,), cubes=(1,), weights=(0.5,),
        batch_sizes=(40,), max_nodes=300, searches=("astar", "astar-v"), threads=1,
        json=tmp_path / "qstar.json",
    )  # fmt: skip
    result = qstar.main(config)
    assert [*result["cells"]] == ["12 astar 40 0.5", "12 astar-v 40 0.5"]
    table = qstar.tables(result)[0]
    assert table.header[1:-2] == ("qstar", "deferred-astar", "astar", "q-beam", "astar-v")
    assert all(len(row) == len(table.header) for row in table.rows)
    for changes, message in (
        ({"value_network_12": None}, "needs --value-network-12"),
        ({"value_network_12": cube_network}, "--value-network-12 must be a network of V"),
        ({"network_12": of_v}, "--network-12 must be a network of Q"),
        ({"searches": ("qstar-v",)}, "--searches qstar-v: there are qstar, "),
    ):
        with pytest.raises(UserError, match=message):
            qstar.main(dataclasses.replace(config, **changes, json=None))
    search_rate = load("search_rate")
    with pytest.raises(UserError, match="must be a network of Q"):
        search_rate.main(search_rate.Config(network=of_v, threads=1))


def test_tables_of_searches_by_hand() -> None:
    """Cells that leave a cube unsolved or cost too much do not count; of the rest the least."""
    qstar = load("qstar")

    def cubes(cost: float, seconds: float, nodes: int, solved: bool = True) -> list[dict[str, Any]]:
        numbers = {"cost": cost, "seconds": 9.0, "cpu_seconds": seconds, "nodes_generated": nodes}
        return [{**numbers, "solved": True}, {**numbers, "solved": solved}]

    cells = {
        "12 qstar 10 0.2": cubes(25.0, 2.0, 100),
        "12 qstar 10 0.4": cubes(23.0, 4.0, 90),
        "12 qstar 10 0.6": cubes(22.0, 0.1, 1, solved=False),
        "12 qstar 10 0.8": cubes(20.0, 0.1, 1)[:1],
        "12 astar 10 0.2": cubes(25.5, 3.0, 900),
        "156 qstar 20 0.4": cubes(13.5, 8.0, 180),
    }
    config = {"actions": [12, 156], "cubes": [2, 2], "clock": "cpu"}
    table, other, growth, papers, settings = qstar.tables({"config": config, "cells": cells})
    assert [row[-2:] for row in table.rows] == [("-", "-"), ("1.5", "10.0"), ("1.5", "10.0")]
    assert table.rows[0][1] == "4.00 s, 90"
    assert [row[1] for row in other.rows] == ["-", "8.00 s, 180", "8.00 s, 180"]
    assert settings.rows[1] == ("12 actions", "qstar", "10", "0.4", "23.00", "4.00", "90")
    assert [row[1] for row in settings.rows] == ["qstar", "qstar", "astar", "qstar"]
    assert growth.rows[0] == (
        "156 actions", "qstar", "-, 4.0, 4.0 (4.0)", "-, 2.0, 2.0 (2.0)"
    )  # fmt: skip
    assert growth.title.endswith("24, 26, 28; 13, 14, 16")
    # At <= 22, 25 and 28 with 12 actions; at <= 12, 14 and 16 with 156.
    assert papers.rows[0][2:] == ("-, 4.0, 4.0 (4.0)", "-, 2.0, 2.0 (2.0)")
    alone = {"actions": [156], "cubes": [2], "clock": "cpu"}
    of_one = qstar.tables({"config": alone, "cells": cells})
    assert of_one[0] == other and len(of_one) == 2  # nothing grows


def test_settings_of_searches_as_a_picture_and_a_page(tmp_path: Path) -> None:
    qstar, kept, page = load("qstar"), tmp_path / "qstar.json", tmp_path / "page.md"
    cube = {"solved": True, "cost": 23.0, "seconds": 9.0, "cpu_seconds": 3.0}
    cells = {"12 qstar 10 0.4": [{**cube, "nodes_generated": 70}]}
    config = {"actions": [12], "cubes": [1], "clock": "wall"}
    result = {"machine": "a machine", "measured": "2031-02-03T00", "config": config, "cells": cells}
    kept.write_text(json.dumps(result))
    page.write_text("before <!-- benchmark:mine --> old <!-- /benchmark:mine --> after")
    shown = qstar.Config(
        measure=False, json=kept, docs=page, block="mine", figure=tmp_path / "qstar.png"
    )
    qstar.main(shown)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after") and "old" not in text
    assert "| <= 24 | 9.00 s, 70 | - | - | - | - | - |" in text and "a machine; 2031-02-03." in text
    assert (tmp_path / "qstar.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="needs the --json"):
        qstar.main(dataclasses.replace(shown, json=None))


def test_cubes_of_a_machine_become_a_row_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("cube_solver")
    folder, page = tmp_path / "results", tmp_path / "page.md"
    folder.mkdir()
    (folder / "index.json").write_text("{}")
    page.write_text("<!-- benchmark:cube_solver --><!-- /benchmark:cube_solver -->")
    config = module.Config(
        name="tiny", note="a test", random=3, seed=2, first=1, batch_size=64, device="cpu",
        threads=1, clock="cpu", folder=folder, docs=page, figure=tmp_path / "cubes.png",
    )  # fmt: skip
    module.main(config)
    first = json.loads((folder / "tiny.json").read_text())["cubes"]
    module.main(dataclasses.replace(config, first=2))
    cubes = json.loads((folder / "tiny.json").read_text())["cubes"]
    assert len(cubes) == 2 and cubes[:1] == first
    (row,) = module.table(module.results(folder)).rows
    lengths = [cube["length_qtm"] for cube in cubes]
    assert row[2] == "`--batch-size 64 --threads 1 --random 3 --seed 2`" and row[3] == "2 of 2"
    assert row[4] == f"{sum(lengths) / 2:.2f} ({min(lengths)}-{max(lengths)})"
    assert row[5].endswith("of processor") and row[1].endswith("; a test")
    assert "`--batch-size 64" in page.read_text()
    assert (tmp_path / "cubes.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="another machine or command"):
        module.main(dataclasses.replace(config, seed=3))
    found = {f"machine-{k}": {"cubes": cubes, "clock": "cpu"} for k in range(9)}
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda f, *_, **__: drawn.append(f))
    module.draw(found, tmp_path / "many.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(found)
    (folder / "stray.json").write_text("{}")
    with pytest.raises(UserError, match="stray"):
        module.results(folder)


def test_beside_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its side is stood in for: 100 states cost it 8 seconds, and its start 5."""
    module = load("beside_deepxube")
    asked, parameters = [], [8_200]

    def stand_in(config: Any, task: dict[str, Any]) -> dict[str, Any]:
        asked.append(task)
        if task["what"] == "search":
            run = {"nodes": 90, "seconds": 3.0, "cpu_seconds": 9.0}
            return {"parameters": parameters[0], "runs": [run]}
        states = float(task["updates"][0] * task["batch_size"])
        seconds = 5.0 + states * 0.08
        return {"runs": [{"states": states, "seconds": seconds, "cpu_seconds": 2 * seconds}]}

    monkeypatch.setattr(module, "peer", stand_in)
    config = module.Config(
        embedding_size=16, hidden_size=8, max_nodes=60, search_batch_sizes=(20,), batch_size=10,
        walk_length=5, updates=2, repeats=2, json=tmp_path / "kept.json",
    )  # fmt: skip
    result = module.main(config)
    theirs = result["runs"]["walk"]["theirs"][1]
    assert theirs == {"count": 40.0, "wall": pytest.approx(3.2), "cpu": pytest.approx(6.4)}
    assert [task.get("pathfind") for task in asked[:5]] == [
        None,
        *2 * ["sup_q"],
        *2 * ["graph_q.1B_1.0W"],
    ]
    assert result["runs"]["bellman"]["ours"][0]["count"] == 40
    (table,) = module.tables(json.loads((tmp_path / "kept.json").read_text())["beside_deepxube"])
    assert [row[2] for row in table.rows] == ["10 (10-10)", "6 (6-6)", "6 (6-6)"]
    parameters[0] = result["parameters"] * 2
    with pytest.raises(UserError, match="no equal networks"):
        module.main(config)


def test_another_package_that_is_not_there(tmp_path: Path) -> None:
    module = load("beside_deepxube")
    with pytest.raises(UserError, match="cannot be run"):
        module.peer(module.Config(peer_python=tmp_path / "python"), {"what": "search"})
    with pytest.raises(UserError, match="failed: ModuleNotFoundError: No module named 'deepxube'"):
        module.peer(module.Config(peer_python=Path(sys.executable)), {"what": "search"})


def test_alternately_takes_turns_in_both_orders() -> None:
    calls: list[str] = []
    jobs = [lambda name=name: calls.append(name) for name in "abc"]
    timings = load("report").alternately(jobs, torch.device("cpu"), 3)
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert [len(t) for t in timings] == [3, 3, 3]


def test_spread_is_median_and_range() -> None:
    report = load("report")
    assert report.spread([5.0, 1_000.4, 3.0, 7.0]) == "6 (3-1,000)"
    assert report.spread(report.ratios([2.0, 9.0, 4.0], [4.0, 3.0, 4.0]), 2) == "1.00 (0.50-3.00)"


def test_keeping_a_result_leaves_those_of_others(tmp_path: Path) -> None:
    report, path = load("report"), tmp_path / "machine.json"
    report.keep(path, "replay", {"a": 1, "b": 2})
    report.keep(path, "atari_dqn", {"c": 3})
    report.keep(path, "replay", {"a": 4})
    assert json.loads(path.read_text()) == {"replay": {"a": 4}, "atari_dqn": {"c": 3}}


def test_report_writes_every_result_between_its_markers(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    report, results, docs = load("report"), tmp_path / "results", tmp_path / "performance.md"
    load("replay").main(tiny_replay(peer="none", json=results / "first.json"))
    load("replay").main(tiny_replay(peer="none", json=results / "second.json"))
    # The page itself, so that it keeps the markers that the program looks for.
    page = (ROOT / "docs" / "performance.md").read_text()
    docs.write_text(page)
    report.main(report.Config(results=results, docs=docs))
    once = docs.read_text()
    assert once.count("### first") == once.count("### second") == 1
    assert once.count("| bytes per transition |") == 2
    assert "Not measured yet." in once  # by the other programs
    assert once.partition("<!--")[0] == page.partition("<!--")[0]
    assert once.rpartition("-->")[2] == page.rpartition("-->")[2]
    report.main(report.Config(results=results, docs=docs))
    assert docs.read_text() == once


def test_missing_markers_are_a_user_error() -> None:
    with pytest.raises(UserError, match="benchmark:replay"):
        load("report").replace_block("<!-- benchmark:replay --> and no end", "replay", "text")


# -- The comparison ----------------------------------------------------------------------------


@pytest.fixture
def peer() -> None:
    for name in ("stable_baselines3", "cv2", "ale_py"):
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.ci
def test_both_sides_of_dqn_do_the_same(peer: None) -> None:
    atari_dqn = load("atari_dqn")
    result = atari_dqn.measure(tiny_dqn(num_envs=(6,)))
    for row in result["rows"]:
        own, other = row["sides"].values()
        for same in ("num_parameters", "training_updates", "forward_flops", "backward_flops"):
            assert own[same] == other[same] > 0
    speed, arithmetic = atari_dqn.tables(result)
    assert len(speed.rows) == 3 and all(len(row) == 4 for row in speed.rows)
    assert len(arithmetic.rows) == 2


def test_replays_hold_the_same_transitions(peer: None) -> None:
    replay = load("replay")
    config = tiny_replay()
    stream = replay.make_stream(config)

    def key(*parts: Any) -> tuple[Any, ...]:
        return tuple(np.asarray(part).tobytes() for part in parts)

    true = {
        key(s.obs[i], s.action[i], s.reward[i], s.next_obs[i], s.terminated[i])
        for s in stream
        for i in range(config.num_envs)
    }
    own, plain, optimised = replay.make_replays(config, torch.device("cpu"))
    for each in (own, plain, optimised):
        for step in stream * 3:
            each.add(step)
    drawn: dict[str, set[tuple[Any, ...]]] = {}
    b = own.sample(400)
    drawn["own"] = {
        key(b.obs[i], b.action[i], b.reward[i], b.next_obs[i], b.discount[i] == 0)
        for i in range(400)
    }
    b = plain.sample(400)
    drawn["peer"] = {
        key(
            b.observations[i],
            b.actions[i, 0],
            b.rewards[i, 0],
            b.next_observations[i],
            bool(b.dones[i]),
        )
        for i in range(400)
    }
    for name, found in drawn.items():
        assert found <= true, name
        assert any(k[-1] == np.True_.tobytes() for k in found), name
    bytes_each = [r.nbytes / r.num_transitions() for r in (own, plain, optimised)]
    assert bytes_each[0] * 3 < bytes_each[2] < bytes_each[1] / 1.9


@pytest.mark.slow
@pytest.mark.ci
def test_ppo_with_rnd_beside_a_plain_loop(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    ppo, kept = load("ppo_rnd_atari"), tmp_path / "machine.json"
    config = ppo.Config(
        num_envs=4, rollout_steps=3, device="cpu", threads=1, peer="none", repeats=2,
        matrix_size=48, json=kept,
    )  # fmt: skip
    result = ppo.main(config)
    assert result["num_parameters"] == 1_223_156 + 2_203_296
    # A quarter of a GFLOP forwards and backwards over four epochs for each of the two networks.
    assert 0.35e9 < result["step_flops"] < 0.55e9
    speed, profile = ppo.tables(json.loads(kept.read_text())["ppo_rnd_atari"])
    assert speed.header == ("steps/s", "classicrl", "plain", "over plain")
    assert [row[0] for row in speed.rows][-1] == "emulators alone"
    assert len(profile.rows) == 7


def test_the_plain_loop_makes_the_same_update() -> None:
    """With the same weights and the same rollout, both sides end with the same weights."""
    pytest.importorskip("ale_py")
    ppo = load("ppo_rnd_atari")
    config = ppo.Config(num_envs=4, rollout_steps=3, device="cpu", threads=1)
    own = ppo.ClassicRL(config, torch.device("cpu"), 1)
    plain = ppo.Plain(config, torch.device("cpu"), 1)
    rnd, network = own.learner.rnd, own.network
    order = [
        (network.body.torso.convolutions, plain.body),
        (network.body.layers, [plain.body[7], plain.body[9]]),
        ([network.heads.actor_branch, network.heads.value_branch], plain.branches),
        ([network.heads.logits, network.heads.values], plain.heads),
        (rnd.target.torso.convolutions, plain.target),
        ([rnd.target.layers[0]], [plain.target[7]]),
        (rnd.predictor.torso.convolutions, plain.predictor),
        (rnd.predictor.layers[::2], [plain.predictor[k] for k in (7, 9, 11)]),
    ]
    pairs = [
        (ours, theirs)
        for a, b in order
        for ours, theirs in zip(
            [m for m in a if hasattr(m, "weight")], [m for m in b if hasattr(m, "weight")],
            strict=False,
        )
    ]  # fmt: skip
    assert sum(p.numel() for ours, _ in pairs for p in ours.parameters()) == 5_104_436
    with torch.no_grad():
        for ours, theirs in pairs:
            weight = ours.weight
            if isinstance(ours, nn.Linear) and weight.shape[1] in (2304, 3136):
                # Ours flattens height, width, channel; torch's layer channel first.
                side = int((weight.shape[1] // 64) ** 0.5)
                weight = weight.view(-1, side, side, 64).permute(0, 3, 1, 2).flatten(1)
            theirs.weight.copy_(weight)
            theirs.bias.copy_(ours.bias)
    own.collect()
    for name in ("obs", "action", "log_prob", "reward", "discount"):
        getattr(plain, name).copy_(getattr(own.rollout, name))
    plain.values.copy_(torch.stack([own.rollout.value_ext, own.rollout.value_int], dim=-1))
    before = [theirs.bias.detach().clone() for _, theirs in pairs]
    own.learn()
    plain.learn()
    # All biases together: Adam turns the rounding of gradients near zero into whole steps.
    moved = torch.cat([ours.bias - b for (ours, _), b in zip(pairs, before, strict=True)])
    apart = torch.cat([ours.bias - theirs.bias for ours, theirs in pairs])
    assert apart.norm() < 0.02 * moved.norm()


def test_the_table_of_small_environments_by_hand() -> None:
    rnd_small = load("rnd_small")
    results = [
        {"environment": "ChainLock40", "bonus": "rnd", "solved_at_step": step,
         "evaluated_return": value}
        for step, value in ((50_000, 1.0), (70_000, 0.5), (None, 0.0))
    ] + [
        {"environment": name, "bonus": bonus, "solved_at_step": None, "evaluated_return": 0.0}
        for name in rnd_small.BUDGETS
        for bonus in rnd_small.BONUSES
        if (name, bonus) != ("ChainLock40", "rnd")
    ]  # fmt: skip
    rows = rnd_small.summary_table(results).rows
    assert rows[0] == (
        "ChainLock40, PPO + RND", "150,000", "2 of 3", "60,000 (50,000-70,000)", "0.50"
    )  # fmt: skip
    assert rows[1] == ("ChainLock40, PPO", "150,000", "0 of 1", "-", "0.00")


def test_the_bias_of_values_by_hand(tmp_path: Path) -> None:
    """Rows of the window alone, means over seeds; double Q and another num_envs left out, another
    width of mu by itself."""
    value_bias = load("value_bias")
    for member, seed, double, num_envs, units, shift in (
        ("va", 0, False, 4, None, 0),
        ("va", 1, False, 4, 64, 2),
        ("va", 2, True, 4, 64, 9),
        ("va", 3, False, 1, 64, 7),
        ("va", 4, False, 4, 512, 3),
        ("dqn", 5, False, 4, 64, 4),
    ):
        directory = tmp_path / f"va_minatar-{member}" / "game" / f"seed{seed}"
        directory.mkdir(parents=True)
        settings = {"env_id": "MinAtar/Asterix-v1", "member": member, "seed": seed}
        settings |= {"double": double, "num_envs": num_envs, "gamma": 0.98}
        settings |= {} if units is None else {"behaviour_hidden": units}
        (directory / "config.json").write_text(json.dumps({"config": settings}))
        lines = ["step,diagnostics/max_q,diagnostics/advantage", "10,99,99"]
        lines += [f"20,{4 + shift},0.1", f"30,{6 + shift},0.3", "40,99,99"]
        (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark:value_bias -->\n<!-- /benchmark:value_bias -->\n")
    config = value_bias.Config(reference=tmp_path, docs=page, last_steps=(30, 90), window_steps=20)
    found = value_bias.main(config)
    runs = found["MinAtar/Asterix-v1", "va"]
    assert [(run.seed, run.max_q[0]) for run in runs] == [(0, 5.0), (1, 7.0)]
    dqn, *rows = value_bias.bias_table(found, config).rows
    assert dqn[:4] == ("MinAtar/Asterix-v1", "dqn", "1", "9.0")
    assert rows == [
        ("MinAtar/Asterix-v1", "va", "2", "6.0", "10.0", "-", "-"),
        ("MinAtar/Asterix-v1", "va, 512 units of mu", "1", "8.0", "10.0", "-", "-"),
    ]
    assert "| 6.0 | 10.0 | - | - |" in page.read_text()


def test_symphony_compares_the_same_equations(tmp_path: Path) -> None:
    symphony, report = load("symphony"), load("report")
    config = symphony.Config(
        sizes=("ed",),
        obs_size=5,
        action_size=3,
        capacity=100,
        device="cpu",
        threads=1,
        repeats=2,
        steps=2,
        warmup_steps=1,
        json=tmp_path / "machine.json",
    )
    result = symphony.main(config)
    (row,) = result["rows"]
    counts = {side["num_parameters"] for side in row["sides"].values()}
    assert len(counts) == 1 and len(row["sides"]) == 2
    assert row["floor_seconds"]["best"] <= row["floor_seconds"]["blas"]
    assert {draw["writes"] > draw["capacity"] for draw in result["draws"]} == {False, True}
    assert len(report.read_json(tmp_path / "machine.json")["symphony"]["rows"]) == 1


def test_symphony_s_plain_side_makes_the_same_update() -> None:
    symphony = load("symphony")
    config = symphony.Config(obs_size=5, action_size=3, capacity=100, device="cpu")
    size, device = symphony.Size(8, 4, 6, 1, 100), torch.device("cpu")
    ours, plain = (side(config, size, 100, device) for side in (symphony.ClassicRL, symphony.Plain))
    with torch.no_grad():  # the same weights on both sides
        for source, block, k in [
            (ours.learner.actor.block, plain.actor, None),
            *((ours.learner.critics.block, critic, k) for k, critic in enumerate(plain.critics)),
        ]:
            h = 8
            rows = slice(None) if k is None else slice(k * h, (k + 1) * h)
            pick = (lambda x: x) if k is None else (lambda x, k=k: x[k])
            for layer, values in (
                (block[0], (source.first.weight[rows], source.first.bias[rows])),
                (block[2], (pick(source.second.weight), pick(source.second.bias))),
                (block[4], (pick(source.third.weight), pick(source.third.bias))),
            ):
                layer.weight.copy_(values[0])
                layer.bias.copy_(values[1])
            block[3].gate_logit.copy_(pick(source.activation.gate_logit).flatten())
        plain.target.load_state_dict(plain.critics.state_dict())
    batch = ours.batch
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    ours.learner._noise = lambda count, generator: (symphony.NOISE_STD * noise).clamp(-1, 1)
    original, torch.randn_like = torch.randn_like, lambda like: noise
    try:
        plain.update_on(
            (
                batch.obs_action[:, :5],
                batch.obs_action[:, 5:],
                batch.reward[:, None],
                batch.next_obs,
                batch.discount[:, None],
            )
        )
    finally:
        torch.randn_like = original
    ours.learner.update(batch)
    torch.testing.assert_close(ours.learner.value_ema, plain.value_ema)
    for mine, theirs in (
        (ours.learner.actor.block.second.weight, plain.actor[2].weight),
        (ours.learner.critics.block.second.weight[1], plain.critics[1][2].weight),
        (ours.learner.target.block.third.weight[2], plain.target[2][4].weight),
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sac", "td3", "crossq"])
def test_continuous_peers_write_what_our_agents_write(tmp_path: Path, algorithm: str) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    pytest.importorskip("mujoco")
    from classicrl.reports.records import read_run

    peer = load("sb3_continuous")
    config = peer.Config(
        run_dir=tmp_path / "run",
        algorithm=algorithm,
        total_steps=160,
        hidden=16,
        log_period_steps=40,
        evaluation_period_steps=80,
        evaluation_episodes=1,
        final_evaluation_episodes=2,
    )
    summary = peer.main(config)
    run = read_run(tmp_path / "run")
    assert run.agent == f"sb3-{algorithm}" and run.protocol == "control"
    assert run.evaluations["step"].tolist() == [80, 160]
    assert len(run.metrics["smoothness/action_rate"]) == 4
    assert summary["eval"]["action_jerk"] > 0
    with pytest.raises(UserError, match="not empty"):
        peer.main(config)
