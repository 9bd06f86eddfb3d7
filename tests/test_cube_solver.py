"""Solving cubes as a user does: the script, its files, and one clear line for everything wrong."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from script_process import command_line

from classicrl.checkpoint import load_model
from classicrl.cube_solver import CubeSolution, CubeSolver, averaged, load_network, shipped_network
from classicrl.domains.cube3 import MOVES, SOLVED, Cube3, parse_moves, to_facelets
from classicrl.errors import UserError
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.solve_cubes import SearchName, SolveConfig, SolveSettings, solve_cubes

SIZES = {"embedding_size": 12, "hidden_size": 7, "num_blocks": 2}


def card(actions: int | str = 12, **changes: str) -> dict[str, str]:
    words = {"domain": "cube3", "actions": str(actions)}
    return words | {name: str(size) for name, size in SIZES.items()} | changes


def weights(actions: int = 12, function: str = "q") -> dict[str, torch.Tensor]:
    domain = Cube3(actions)
    generator = torch.Generator().manual_seed(3)
    network = ByteQNetwork(
        domain.feature_offsets,
        domain.num_features,
        1 if function == "v" else len(domain.sequences),
        mean_output=9.0,
        generator=generator,
        **SIZES,  # type: ignore[arg-type]
    )
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that answers 1 always: no estimate is too high, so searches are exact, if slow."""
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    save_file(ones(weights()), path, card())
    return path


def ones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    flat = {"head.weight": torch.zeros_like, "head.bias": torch.ones_like}
    return tensors | {name: fill(tensors[name]) for name, fill in flat.items()}


SHORT = "R U' F2 L D' B R' U"  # 9 quarter turns


@pytest.mark.parametrize("search", [None, "qstar", "astar", "deferred-astar", "q-beam"])
def test_every_search_solves_a_short_scramble(network: Path, search: str | None) -> None:
    config = SolveConfig(
        scramble=SHORT, network=network, search=search, perimeter=5,
        weight=None if search in (None, "q-beam") else 1.0,
        batch_size=20_000 if search == "q-beam" else 300,
        threads=1, max_nodes=200_000,
    )  # type: ignore[arg-type]  # fmt: skip
    (solution,) = solve_cubes(config)["cubes"]
    assert solution["solved"]
    moves = parse_moves(solution["moves"])
    assert len(moves) == solution["length_qtm"] == solution["cost"]
    assert len(moves) % 2 == 1  # the parity of the scramble
    assert to_facelets(Cube3(12).after([*parse_moves(SHORT), *moves])) == SOLVED


@pytest.mark.parametrize("actions", [156, 1884])
def test_sequences_as_actions_are_written_out_as_quarter_turns(
    tmp_path: Path, actions: int
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(ones(weights(actions)), path, card(actions))
    solver = CubeSolver(load_network(path), SolveSettings(search="qstar", perimeter=3, weight=1.0))
    scramble = parse_moves("R U' F2 L")
    solution = solver.solve(Cube3(12).after(scramble))
    assert solution.solved
    assert solution.cost == -(-len(solution.turns) // (2 if actions == 156 else 3)) <= 3
    assert to_facelets(Cube3(12).after([*scramble, *solution.turns])) == SOLVED


def test_a_solved_cube_needs_no_moves(network: Path) -> None:
    (solution,) = solve_cubes(SolveConfig(facelets=SOLVED, network=network, threads=1))["cubes"]
    assert solution["solved"] and solution["moves"] == "" and solution["length_qtm"] == 0


@pytest.mark.parametrize(
    ("actions", "preset", "width"),
    [(12, "fast", 8_192), (12, "best", 262_144), (156, "fast", 8_192), (1884, "best", 65_536)],
)
def test_presets_begin_with_their_width(
    tmp_path: Path, actions: int, preset: str, width: int
) -> None:
    save_file(weights(actions), tmp_path / "model.safetensors", card(actions))
    settings = SolveSettings(preset=preset, perimeter=0)  # type: ignore[arg-type]
    solution = CubeSolver(load_network(tmp_path), settings).solve(Cube3(12).goal)
    assert solution.attempts == [f"q-beam width {width}"] and solution.solved


def test_a_beam_that_lost_its_way_gives_way_to_a_wider_one(tmp_path: Path) -> None:
    """The ladder stops at 40 layers, a beam that was asked for by name at 60."""
    save_file(weights(), tmp_path / "model.safetensors", card())  # knows nothing of the cube
    far = Cube3(12).random_states(1, torch.Generator().manual_seed(1))[0]
    limits = {"batch_size": 2, "perimeter": 0, "max_nodes": 170}

    def solution_of(search: SearchName | None) -> CubeSolution:
        settings = SolveSettings(preset="fast", search=search, **limits)  # type: ignore[arg-type]
        return CubeSolver(load_network(tmp_path), settings).solve(far)

    named, ladder = solution_of("q-beam"), solution_of(None)
    assert named.attempts == ["q-beam width 2"] and named.stopped == "max_nodes"
    assert named.nodes_generated >= 170  # four a layer, so after more than 40 layers
    assert ladder.attempts[:2] == ["q-beam width 2", "q-beam width 8"]
    shallow = CubeSolver(load_network(tmp_path), SolveSettings(batch_size=2, max_nodes=170))
    (first, *_) = shallow._ladder()
    assert shallow._search(first, far, 60.0, None).stopped == "max_depth"


@pytest.mark.parametrize("search", [None, "qstar", "astar", "deferred-astar", "q-beam"])
def test_a_network_of_values_guides_every_search(tmp_path: Path, search: SearchName | None) -> None:
    save_file(ones(weights(function="v")), tmp_path / "model.safetensors", card(function="v"))
    loaded = load_network(tmp_path)
    assert loaded.is_value
    start = loaded.domain.after(parse_moves("R U' F2 L D'"))
    settings = SolveSettings(search=search, perimeter=3, batch_size=4_096 if search else None)
    solution = CubeSolver(loaded, settings).solve(start)
    assert solution.solved and len(solution.turns) == 6
    # For Q* and beams the network sees the 12 children of each state.
    children = search not in ("astar", "deferred-astar")
    assert loaded.states_per_row(search or "q-beam") == (12 if children else 1)
    assert not children or solution.states_evaluated % 12 == 0
    # What a search sees: the children's values, or for A* those of the state itself.
    save_file(weights(function="v"), tmp_path / "random.safetensors", card(function="v"))
    unlike = load_network(tmp_path / "random.safetensors")
    states = unlike.domain.random_states(3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        values = unlike.network(states).expand(-1, 12)
        if search not in ("astar", "deferred-astar"):
            children = [unlike.domain.apply(states, torch.full((3,), a)) for a in range(12)]
            values = torch.cat([1 + unlike.network(child) for child in children], 1)
        torch.testing.assert_close(unlike.q_function(search or "q-beam")(states), values)
    # The network is asked about all children of a beam's states, so fewer states make a layer.
    assert search is not None or solution.attempts[0] == "q-beam width 682"
    at_156 = tmp_path / "156.safetensors"
    save_file(weights(156, "v"), at_156, card(156, function="v"))
    (first, *_) = CubeSolver(load_network(at_156), SolveSettings(preset="best"))._ladder()
    assert first.size == 65_536 // 126


@pytest.mark.parametrize("search", ["qstar", "q-beam"])
def test_what_the_network_sees_is_counted_with_its_symmetries(
    tmp_path: Path, search: SearchName
) -> None:
    save_file(weights(), tmp_path / "model.safetensors", card())
    loaded = load_network(tmp_path)
    seen = 0

    def count(module: object, arguments: tuple[torch.Tensor], output: object) -> None:
        nonlocal seen
        seen += len(arguments[0])

    loaded.network.register_forward_hook(count)
    settings = SolveSettings(search=search, symmetries=3, max_nodes=60, batch_size=20, perimeter=0)
    far = Cube3(12).random_states(1, torch.Generator().manual_seed(1))[0]
    assert CubeSolver(loaded, settings).solve(far).states_evaluated == seen > 60


SHIPPED = {12: "cube3-12-qtm/gpu-seed0", 156: "cube3-156-qtm/taught-seed0"}
SHIPPED[1884] = "cube3-1884-qtm/taught-seed0"


@pytest.mark.parametrize("actions", SHIPPED)
def test_the_networks_of_the_package_are_the_published_ones(actions: int) -> None:
    """As float16, with the record of their training."""
    published = Path(__file__).parents[1] / "runs/reference/qstar_cube3_train" / SHIPPED[actions]
    mine = shipped_network(actions)
    tensors, named = load_model(mine)
    others, other_named = load_model(published / "model.safetensors")
    assert tensors.keys() == others.keys() and named == other_named
    assert all(torch.equal(tensors[n], t.half()) for n, t in others.items())
    record = json.loads(mine.with_suffix(".json").read_text())["training"]
    summary = json.loads((published / "summary.json").read_text())
    assert {name: summary[name] for name in record} == record


def test_averaging_over_symmetries_gives_symmetric_answers(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors", card())
    loaded = load_network(tmp_path)
    domain = loaded.domain
    states = domain.random_states(5, torch.Generator().manual_seed(1))
    mean = averaged(domain, loaded.network, 48)
    with torch.no_grad():
        q = mean(states)
        assert averaged(domain, loaded.network, 1)(states).shape == (5, 12)
        for symmetry in domain.symmetries()[:10]:
            torch.testing.assert_close(mean(symmetry.image(states))[:, symmetry.actions], q)
        assert not torch.allclose(loaded.network(states), q, atol=1e-3)


def test_files_hold_what_was_found(network: Path, tmp_path: Path) -> None:
    scrambles = tmp_path / "scrambles.txt"
    scrambles.write_text("R U\n\n  F' D2 \n")
    config = SolveConfig(
        scrambles_file=scrambles,
        network=network,
        threads=1,
        json=tmp_path / "out.json",
        html=tmp_path / "out.html",
        gif=tmp_path / "out.gif",
    )
    returned = solve_cubes(config)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == returned
    assert [cube["moves"] for cube in written["cubes"]] == ["U' R'", "D' D' F"]
    assert [cube["length_htm"] for cube in written["cubes"]] == [2, 2]
    expected = {"solved", "moves", "length_qtm", "length_htm", "cost", "nodes_generated"}
    assert expected | {"states_evaluated", "seconds", "search"} <= written["cubes"][0].keys()
    settings = written["settings"]
    assert (settings["preset"], settings["actions"], settings["stop"]) == ("fast", 12, None)
    assert settings["network"] == str(network)
    save_file(weights(156), tmp_path / "other.safetensors", card(156))
    of_156 = SolveConfig(scramble="R", network=tmp_path / "other.safetensors", threads=1)
    assert solve_cubes(of_156)["settings"]["actions"] == 156
    assert (tmp_path / "out.gif").read_bytes()[:4] == b"GIF8"
    assert "<html" in (tmp_path / "out.html").read_text()


def test_half_turns_are_shown_and_not_written(
    network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SolveConfig(scramble="F' D2", network=network, threads=1, half_turns=True)
    assert solve_cubes(config)["cubes"][0]["moves"] == "D' D' F"
    assert "D2 F  [3 quarter turns, 2 with half turns" in capsys.readouterr().out


def test_what_was_not_solved_has_no_length_and_no_picture(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SolveConfig(
        random=1, network=network, threads=1, search="qstar", max_nodes=20, perimeter=0,
        json=tmp_path / "out.json", html=tmp_path / "out.html",
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        solve_cubes(config)
    assert caught.value.code == 1
    assert "--html: no cube was solved" in capsys.readouterr().err
    (cube,) = json.loads((tmp_path / "out.json").read_text())["cubes"]
    assert not cube["solved"]
    assert cube["length_qtm"] is cube["length_htm"] is cube["cost"] is None
    assert not (tmp_path / "out.html").exists()


def test_a_limit_of_more_nodes_than_memory_holds_is_none(network: Path) -> None:
    config = SolveConfig(
        scramble=SHORT, network=network, threads=1, search="qstar", max_nodes=1 << 31,
        weight=1.0, batch_size=300, stop="first",
    )  # fmt: skip
    assert solve_cubes(config)["cubes"][0]["solved"]


def test_random_cubes_depend_on_the_seed_and_their_number() -> None:
    from classicrl.solve_cubes import cubes_of

    first = cubes_of(SolveConfig(random=3, seed=5))
    again = cubes_of(SolveConfig(random=3, seed=5))
    other = cubes_of(SolveConfig(random=3, seed=6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[1])
    # How many are asked for is a seed of its own: benchmarks must not compare the beginnings.
    more = cubes_of(SolveConfig(random=4, seed=5))
    assert not torch.equal(first[0], more[0])


def test_what_no_limit_allows_is_left_unsolved_with_exit_code_1(network: Path) -> None:
    config = SolveConfig(
        random=2, network=network, search="qstar", max_nodes=500, perimeter=0, threads=1
    )
    with pytest.raises(SystemExit) as stopped:
        solve_cubes(config)
    assert stopped.value.code == 1


def swapped(text: str, i: int, j: int) -> str:
    letters = list(text)
    letters[i], letters[j] = letters[j], letters[i]
    return "".join(letters)


def cycled(text: str, *places: int) -> str:
    letters = list(text)
    for place, source in zip(places, places[1:] + places[:1], strict=True):
        letters[place] = text[source]
    return "".join(letters)


BAD_MOVES = {
    "R3": "no move", "Rw": "two layers", "r": "two layers", "M": "middle slice", "E'": "slice",
    "S2": "slice", "x": "whole cube", "y'": "whole cube", "z2": "whole cube", "R''": "no move",
    "R2'2": "no move", "RU": "no move", "R U Q": "move 3", "1": "no move", "(R U)": "move 1",
    "R,U": "no move", "u": "two layers", "f2": "two layers", "3Rw": "two layers", "R-": "no move",
    "U R' F2 R22": "move 4", "\N{GREEK CAPITAL LETTER RHO}": "no move",
}  # fmt: skip
BAD_FACELETS = {
    "": "54 facelets", "U": "these are 1", SOLVED + "U": "these are 55", SOLVED[:-1]: "are 53",
    "X" + SOLVED[1:]: "'X'", SOLVED.lower(): "letters URFDLB", "R" + SOLVED[1:]: "facelets",
    swapped(SOLVED, 4, 13): "centre", SOLVED.replace("U", "D"): "facelets U",
    swapped(SOLVED, 8, 27): "no cubie", swapped(SOLVED, 5, 10): "edge is flipped",
    cycled(SOLVED, 8, 9, 20): "corner is twisted", cycled(SOLVED, 9, 8, 20): "corner is twisted",
    swapped(SOLVED, 8, 9): "no cubie",
    swapped(swapped(SOLVED, 10, 19), 5, 7): "swapped", swapped(SOLVED, 0, 9): "no cubie",
    swapped(SOLVED, 1, 10): "no cubie", " " * 54: "54 facelets", "U" * 54: "these are 54",
    swapped(swapped(SOLVED, 3, 32), 37, 16): "swapped",
}  # fmt: skip


@pytest.mark.parametrize(("moves", "message"), BAD_MOVES.items())
def test_bad_moves(moves: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        solve_cubes(SolveConfig(scramble=moves, threads=1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("facelets", "message"), BAD_FACELETS.items())
def test_bad_facelets(facelets: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        solve_cubes(SolveConfig(facelets=facelets, threads=1))
    assert "\n" not in str(refused.value)


BAD_SETTINGS: list[tuple[dict[str, object], str]] = [
    ({"random": 0}, "say which cubes"),
    ({"random": -1}, "--random must not be negative"),
    ({"random": 10_000_000}, "--random must"),
    ({"random": 1, "scramble": "R"}, "say which cubes"),
    ({"facelets": SOLVED, "scramble": "R"}, "say which cubes"),
    ({"scrambles_file": Path("/nowhere/at/all")}, "cannot be read"),
    ({"random": 1, "search": "qstar", "weight": -0.1}, "--weight must"),
    ({"random": 1, "search": "astar", "weight": 1.5}, "--weight must"),
    ({"random": 1, "search": "qstar", "weight": float("nan")}, "--weight must"),
    ({"random": 1, "weight": 0.5}, "--weight is for --search qstar"),
    ({"random": 1, "stop": "first"}, "--stop is for --search qstar"),
    ({"random": 1, "search": "q-beam", "weight": 0.0}, "--weight is for --search qstar"),
    ({"random": 1, "batch_size": 0}, "--batch-size"),
    ({"random": 1, "batch_size": -5}, "--batch-size"),
    ({"random": 1, "batch_size": 1 << 40}, "--batch-size"),
    ({"random": 1, "max_nodes": 0}, "--max-nodes"),
    ({"random": 1, "max_nodes": 1 << 50}, "--max-nodes"),
    ({"random": 1, "max_seconds": 0.0}, "--max-seconds"),
    ({"random": 1, "max_seconds": -1.0}, "--max-seconds"),
    ({"random": 1, "max_seconds": float("nan")}, "--max-seconds"),
    ({"random": 1, "perimeter": -1}, "--perimeter"),
    ({"random": 1, "perimeter": 7}, "--perimeter"),
    ({"random": 1, "symmetries": 0}, "--symmetries"),
    ({"random": 1, "symmetries": 49}, "--symmetries"),
    ({"random": 1, "json": Path("/nowhere/at/all.json")}, "no directory"),
    ({"random": 1, "html": Path("/nowhere/at/all.html")}, "no directory"),
    ({"random": 1, "gif": Path("/nowhere/at/all.gif")}, "no directory"),
    ({"random": 1, "json": Path("/tmp")}, "is a directory"),
    ({"random": 1, "html": Path("/tmp")}, "is a directory"),
    ({"random": 1, "gif": Path("/tmp")}, "is a directory"),
    ({"random": 1, "json": Path("/tmp/x"), "html": Path("/tmp/x")}, "two name the same"),
    ({"random": 1, "html": Path("/tmp/x"), "gif": Path("/tmp/../tmp/x")}, "two name the same"),
    ({"random": 1, "threads": -1}, "--threads"),
    ({"random": 1, "seed": -1}, "--seed"),
    ({"random": 1, "actions": 1884}, "leave --actions out"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS, ids=str)
def test_bad_settings(network: Path, changes: dict[str, object], message: str) -> None:
    config = dataclasses.replace(SolveConfig(network=network, threads=1), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as refused:
        solve_cubes(config)
    assert "\n" not in str(refused.value)


def test_a_place_that_is_not_writable(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    config = SolveConfig(random=1, network=network, threads=1, json=tmp_path / "x.json")
    with pytest.raises(UserError, match="is not writable: write elsewhere"):
        solve_cubes(config)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


BAD_NETWORKS: list[tuple[dict[str, str], Callable[[dict[str, torch.Tensor]], object], str]] = [
    (card(domain="go"), len, "holds no network for the cube"),
    ({}, len, "holds no network for the cube"),
    (card("twelve"), len, "holds no network for the cube"),
    (card(13), len, "12, 156 or 1884"),
    (card(156), len, "does not fit"),
    (card(hidden_size="8"), len, "does not fit"),
    (card(embedding_size="1000000"), len, "impossible size"),
    (card(num_blocks="-1"), len, "holds no network"),
    (card(num_blocks="3"), len, "missing"),
    (card(function="v"), len, "does not fit"),
    (card(function="policy"), len, "no network of Q or V, but of 'policy'"),
    (card(), without("head.weight"), "head.weight is missing"),
    (card(), lambda t: t.update(extra=torch.zeros(2)), "extra"),
    (card(), lambda t: t["head.bias"].fill_(float("nan")), "NaN or infinite"),
]


@pytest.mark.parametrize(("words", "damage", "message"), BAD_NETWORKS)
def test_bad_networks(
    tmp_path: Path,
    words: dict[str, str],
    damage: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    tensors = {name: tensor.clone() for name, tensor in weights().items()}
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", words)
    with pytest.raises(UserError, match=message) as refused:
        load_network(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a network", b"\xff" * 100])
def test_files_that_are_no_networks(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_network(tmp_path)
    with pytest.raises(UserError, match="is not a file"):
        load_network(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"), [("", "no scramble"), ("R\nU X\n", "line 2, move 2"), ("\n \n", "no scr")]
)
def test_bad_scramble_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=message):
        solve_cubes(SolveConfig(scrambles_file=tmp_path / "file", threads=1))


def test_the_script_answers_bad_input_with_one_line(tmp_path: Path) -> None:
    exit_code, output = command_line(
        "qstar_cube3_solve", "--scramble", "R Q", output=tmp_path / "output"
    )
    assert exit_code == 2
    assert output.strip().splitlines() == [line for line in output.splitlines() if "move 2" in line]


def test_moves_are_named_as_everywhere() -> None:
    assert " ".join(MOVES) == "U U' R R' F F' D D' L L' B B'"


@pytest.mark.parametrize("actions", [12, 156, 1884])
def test_the_networks_that_come_with_the_package_know_the_cube(actions: int) -> None:
    loaded = load_network(shipped_network(actions))
    solver = CubeSolver(loaded, SolveSettings(search="q-beam", batch_size=256, perimeter=5))
    start = Cube3(12).after(parse_moves("R U F' L2 D' B U R'"))
    solution = solver.solve(start)
    assert solution.solved and len(solution.turns) <= 15
