"""checkpoint/torch_state.py: moments and random numbers that were saved on another kind of device,
or in another memory format. A GPU is not needed to see what must be done with its states."""

from pathlib import Path

import pytest
import torch

from classicrl.algorithms.symphony import SymphonyLearner
from classicrl.checkpoint import load_optimizer_, restore_generator
from classicrl.domains.cube3 import Cube3
from classicrl.domains.cube3_walks import CubeWalks
from classicrl.errors import UserError
from classicrl.networks.symphony import SymphonyActor, SymphonyCritics
from classicrl.replay.fading import FadingReplay
from classicrl.training_state import Counters, TrainingState

CUDA_STATE = torch.arange(16, dtype=torch.uint8)
"""The states of a CUDA generator are of this size."""


def test_a_generator_goes_on_where_it_was() -> None:
    generator, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)
    torch.rand(7, generator=generator)
    restore_generator(other, generator.get_state())
    assert torch.equal(torch.rand(5, generator=generator), torch.rand(5, generator=other))


def test_another_device_s_state_gives_other_numbers_that_depend_on_it() -> None:
    drawn = []
    for seed, saved in ((3, CUDA_STATE), (3, CUDA_STATE), (4, CUDA_STATE), (3, CUDA_STATE + 1)):
        generator = torch.Generator().manual_seed(seed)
        restore_generator(generator, saved)
        drawn.append(torch.rand(5, generator=generator))
    assert torch.equal(drawn[0], drawn[1])
    fresh = torch.rand(5, generator=torch.Generator().manual_seed(3))
    for numbers in (drawn[2], drawn[3], fresh):
        assert not torch.equal(drawn[0], numbers)


def test_moments_are_copies_in_the_format_of_their_parameters() -> None:
    def trained(format: torch.memory_format) -> tuple[torch.nn.Conv2d, torch.optim.Adam]:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 2).to(memory_format=format)
        return layer, torch.optim.Adam(layer.parameters(), fused=True)

    layer, optimizer = trained(torch.channels_last)
    layer(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0]["capturable"] = True  # as on a GPU
    other, its_optimizer = trained(torch.contiguous_format)
    load_optimizer_(its_optimizer, state)
    assert its_optimizer.param_groups[0]["capturable"] is False
    moments = its_optimizer.state[other.weight]
    assert moments["exp_avg"].stride() == other.weight.stride() != layer.weight.stride()
    assert torch.equal(moments["exp_avg"], optimizer.state[layer.weight]["exp_avg"])
    moments["exp_avg"].zero_()
    moments["step"].zero_()
    assert optimizer.state[layer.weight]["exp_avg"].any()
    assert optimizer.state[layer.weight]["step"] == 1


def test_symphony_goes_on_from_another_device() -> None:
    learner = SymphonyLearner(SymphonyActor(5, 3, 8), SymphonyCritics(5, 3, 8, 4))
    learner.load_state_dict(learner.state_dict() | {"generators": [CUDA_STATE, CUDA_STATE]})
    learner.act(torch.zeros(2, 5))
    replay = FadingReplay(5, 3, warmup_steps=4, replication=2)
    replay.load_state_dict(replay.state_dict() | {"generator": CUDA_STATE})


def test_walks_go_on_from_another_device() -> None:
    def fresh() -> CubeWalks:
        return CubeWalks(Cube3(12), 6, None, torch.Generator().manual_seed(2))

    walks = fresh()
    walks.batch(40, walks_at_once=11)
    moved = fresh()
    moved.load_state_dict(
        walks.state_dict() | {"generator": CUDA_STATE, "before_pool": CUDA_STATE + 1}
    )
    again = fresh()  # what is saved here is of this device
    again.load_state_dict(moved.state_dict())
    for mine, its in zip(moved.batch(20), again.batch(20), strict=True):
        assert torch.equal(mine, its)


def test_a_full_gpu_is_no_foreign_checkpoint(tmp_path: Path) -> None:
    class Large:
        def state_dict(self) -> dict[str, int]:
            return {"rows": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def state() -> TrainingState:
        return TrainingState(
            tmp_path, Counters(step=3), {"replay": Large()}, model=torch.nn.Linear(2, 1),
            card={}, info={}, say=lambda line: None,
        )  # fmt: skip

    state().save()
    with pytest.raises(UserError, match="memory: free some, or continue with --device cpu"):
        state().resume()
