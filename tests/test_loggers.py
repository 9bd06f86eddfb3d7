"""What is logged: CSV files that continue after a crash, TensorBoard, means, episode statistics."""

import errno
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_equal
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from classicrl.console import TrainingProgress, duration_in_words
from classicrl.loggers import (
    CsvLog,
    Episode,
    EpisodeStatistics,
    MeanMetrics,
    MemberEpisodes,
    MetricsLog,
    read_csv,
)


def write_rows(path: Path, *steps: int, resume_step: int = 0) -> None:
    log = CsvLog(path, resume_step)
    for step in steps:
        log.write(step, {"b": step + 0.25, "a": -1.0 / step})
    log.close()


# -- CSV -------------------------------------------------------------------------------------------


def test_rows_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    log = CsvLog(path)
    log.write(10, {"b": 0.1, "a": math.nan})
    log.write(20, {"a": 1e-300, "b": 3})  # any order; the first row fixes the columns
    assert path.read_text() == "step,b,a\n10,0.1,\n20,3,1e-300\n"  # flushed at every row
    log.close()


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    values = [1 / 3, -0.0, 1e308, 5e-324, math.inf, float(np.float32(0.1)), math.nan]
    log = CsvLog(path)
    for i, value in enumerate(values):
        log.write(i, {"x": value})
    log.close()
    np.testing.assert_array_equal(read_csv(path)["x"], values)
    assert read_csv(path)["step"].tolist() == list(range(len(values)))


@pytest.mark.parametrize(
    "metrics", [{"b": 1.0}, {"b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {}]
)
def test_other_names_than_the_first_rows_are_refused(
    tmp_path: Path, metrics: dict[str, float]
) -> None:
    path = tmp_path / "m.csv"
    log = CsvLog(path)
    log.write(1, {"b": 1.25, "a": -1.0})
    before = path.read_text()
    with pytest.raises(ValueError, match=r"columns are|at least one"):
        log.write(2, metrics)
    log.close()
    assert path.read_text() == before


def test_a_version_that_logs_other_figures_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write_rows(path, 1, 2)  # b and a
    log = CsvLog(path, 2)
    log.write(3, {"c": 7.0, "a": 0.5})
    log.write(4, {"c": 8.0, "a": 0.25})
    log.close()
    assert path.read_text() == "step,b,a,c\n1,1.25,-1.0,\n2,2.25,-0.5,\n3,,0.5,7.0\n4,,0.25,8.0\n"
    log = CsvLog(path, 3)  # again, with one column alone: nothing is added
    log.write(5, {"b": 1.0})
    log.close()
    assert path.read_text().splitlines()[3:] == ["3,,0.5,7.0", "5,1.0,,"]


def test_columns_that_a_full_disk_has_no_room_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.csv"
    write_rows(path, 1)
    log = CsvLog(path, 1)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("classicrl.loggers.write_atomic", full)
    log.write(2, {"c": 7.0, "a": 0.5})
    log.close()
    assert path.read_text() == "step,b,a\n1,1.25,-1.0\n2,,0.5\n"


def test_resume_drops_later_rows_and_goes_on(tmp_path: Path) -> None:
    path, never_stopped = tmp_path / "m.csv", tmp_path / "whole.csv"
    write_rows(path, 10, 20, 30, 40)
    write_rows(path, 30, 40, 50, resume_step=25)
    write_rows(never_stopped, 10, 20, 30, 40, 50)
    assert path.read_text() == never_stopped.read_text()


def test_resume_keeps_the_row_of_its_own_step(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write_rows(path, 10, 20, 30)
    write_rows(path, resume_step=20)
    assert read_csv(path)["step"].tolist() == [10, 20]


def test_a_row_cut_anywhere_is_dropped_or_whole_but_never_another(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write_rows(path, 10, 20, 30)
    text = path.read_text()
    whole = text.splitlines(keepends=True)
    for length in range(len(text)):
        path.write_text(text[:length])
        CsvLog(path, resume_step=1000).close()
        rows = path.read_text().splitlines(keepends=True)
        assert rows in (whole[:4], whole[:3], whole[:2], []), text[:length]
        assert len(rows) >= text[:length].count("\n") or len(rows) == 0
    path.write_text(text[:-1])
    assert read_csv(path)["step"].tolist() == [10, 20]  # also for those who read along


def test_after_a_cut_header_the_columns_are_free_again(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("step,b")
    write_rows(path, 5)
    assert path.read_text() == "step,b,a\n5,5.25,-0.2\n"


def test_rows_that_are_not_kept_do_not_fix_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write_rows(path, 10, 20)  # killed before its first checkpoint
    log = CsvLog(path, resume_step=0)
    log.write(10, {"other": 1.0})
    log.close()
    assert path.read_text() == "step,other\n10,1.0\n"


def test_what_a_full_disk_refuses_comes_with_a_later_row(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    log = CsvLog(path)
    log.write(10, {"x": 1.5})
    file = log._file

    class FullDisk:
        """Takes three bytes, then none."""

        room = 3

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            taken, self.room = self.room, 0
            return file.write(data[:taken])

    log._file = FullDisk()  # type: ignore[assignment]
    log.write(20, {"x": 2.5})
    log.write(30, {"x": 3.5})
    assert path.read_text() == "step,x\n10,1.5\n20,"
    log._file = file
    log.write(40, {"x": 4.5})
    log.close()
    assert path.read_text() == "step,x\n10,1.5\n20,2.5\n30,3.5\n40,4.5\n"


def test_a_crash_while_the_file_is_rewritten_leaves_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.csv"
    write_rows(path, 10, 20, 30)
    before = path.read_text()

    def crash(*_: Any) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        CsvLog(path, resume_step=20)
    assert path.read_text() == before


# -- TensorBoard -----------------------------------------------------------------------------------


def events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory / "tensorboard"), {"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(directory).Scalars(name)]


def test_metrics_go_to_both_and_evaluations_to_their_own_file(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(10, {"losses/td": 0.5, "charts/return": math.nan})
        log.write(20, {"losses/td": 0.25, "charts/return": -21.0})
        log.write_evaluation(20, {"mean_return": 3.5})
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,losses/td,charts/return\n10,0.5,\n20,0.25,-21.0\n"
    )
    assert (tmp_path / "evaluations.csv").read_text() == "step,mean_return\n20,3.5\n"
    assert scalars(tmp_path, "losses/td") == [(10, 0.5), (20, 0.25)]
    assert scalars(tmp_path, "charts/return") == [(20, -21.0)]
    assert scalars(tmp_path, "eval/mean_return") == [(20, 3.5)]


@pytest.mark.parametrize("resume_step", [0, 10, 15])
def test_resume_drops_what_a_lost_part_had_written(tmp_path: Path, resume_step: int) -> None:
    kept = [step for step in (10, 20) if step <= resume_step]
    with MetricsLog(tmp_path) as log:
        for step in (10, 20):
            log.write(step, {"x": 1.0})
    with MetricsLog(tmp_path, resume_step=resume_step) as log:
        log.write(20, {"x": 2.0})
    expected = [(step, 1.0) for step in kept] + [(20, 2.0)]
    assert scalars(tmp_path, "x") == expected
    table = read_csv(tmp_path / "metrics.csv")
    assert list(zip(table["step"], table["x"], strict=True)) == expected


def test_an_evaluation_that_will_be_made_again_is_dropped(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (10, 20):
            log.write(step, {"x": 1.0})
            log.write_evaluation(step, {"mean_return": 1.0})
    # The checkpoint of step 20 was written before the evaluation there.
    with MetricsLog(tmp_path, resume_step=20, evaluated_at_step=10) as log:
        log.write_evaluation(20, {"mean_return": 2.0})
    assert (tmp_path / "evaluations.csv").read_text() == "step,mean_return\n10,1.0\n20,2.0\n"
    assert read_csv(tmp_path / "metrics.csv")["step"].tolist() == [10, 20]
    assert scalars(tmp_path, "eval/mean_return") == [(10, 1.0), (20, 2.0)]
    assert scalars(tmp_path, "x") == [(10, 1.0), (20, 1.0)]


def test_gif_can_be_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(256, size=(21, 16, 3), dtype=np.uint8)) for _ in range(3)
    ]
    path = tmp_path / "video.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    with MetricsLog(tmp_path) as log:
        log.gif(40, "eval/game", path)
    [event] = events(tmp_path).Images("eval/game")
    assert event.step == 40
    assert event.encoded_image_string == path.read_bytes()
    assert (event.width, event.height) == (16, 21)


def test_histogram_is_written(tmp_path: Path) -> None:
    values = torch.linspace(-2.0, 3.0, 50).reshape(5, 10)
    with MetricsLog(tmp_path) as log:
        log.histogram(30, "q", values)
        log.flush()
        found = events(tmp_path)  # before it is closed
    [event] = found.Histograms("q")
    histogram = event.histogram_value
    assert (event.step, histogram.num) == (30, 50)
    assert (histogram.min, histogram.max) == pytest.approx((-2.0, 3.0))
    assert histogram.sum == pytest.approx(values.sum().item())


# -- means -----------------------------------------------------------------------------------------


def test_histograms_leave_out_what_is_no_number(tmp_path: Path) -> None:
    """TensorBoard raises on NaN, in the middle of a run that has a clearer word for it."""
    with MetricsLog(tmp_path) as log:
        log.histogram(3, "histograms/q", torch.tensor([[math.nan, 1.0], [2.0, math.inf]]))
        log.histogram(5, "histograms/q", torch.full((2, 3), math.nan))
        log.histogram(7, "histograms/q", torch.empty(0))


def test_means_by_hand() -> None:
    means = MeanMetrics()
    assert means.pop() == {}
    means.add({"loss": torch.tensor([1.0, 2.0, 6.0]), "q": torch.tensor([0.0, -1.0, 1.0])})
    means.add({"loss": torch.tensor([7.0]), "q": torch.tensor([4.0])})
    assert means.peek() == means.pop() == {"loss": 4.0, "q": 1.0}
    assert means.peek() == {}
    means.add({"loss": torch.tensor([3.0]), "q": torch.tensor([3.0])})
    assert means.pop() == {"loss": 3.0, "q": 3.0}


def test_means_are_summed_in_double_precision() -> None:
    means = MeanMetrics()
    means.add({"x": torch.tensor([2.0**25])})
    for _ in range(3):
        means.add({"x": torch.ones(1)})
    assert means.pop() == {"x": (2.0**25 + 3) / 4}


def test_one_nan_shows_in_the_mean() -> None:
    means = MeanMetrics()
    means.add({"loss": torch.tensor([1.0, math.nan, 1.0])})
    means.add({"loss": torch.ones(100)})
    assert math.isnan(means.peek()["loss"])


def test_means_continue_on_another_device() -> None:
    """Saved sums of members come back on the CPU, and what is added to them lies on a GPU."""
    means = MeanMetrics()
    means.load_state_dict({"sums": {"x": [1.0, 2.0]}, "counts": {"x": 3}})
    means.add({"x": torch.ones(4, 2, device="meta")})
    assert means._sums["x"].device.type == "meta" and means._counts["x"] == 7


def test_means_continue_from_their_state() -> None:
    means, other = MeanMetrics(), MeanMetrics()
    means.add({"x": torch.tensor([0.1, 0.2, 0.7])})
    other.load_state_dict(means.state_dict())
    for part in (means, other):
        part.add({"x": torch.tensor([1 / 3])})
    assert means.pop() == other.pop()
    other.load_state_dict(MeanMetrics().state_dict())
    assert other.pop() == {}


# -- episodes --------------------------------------------------------------------------------------


def add(statistics: EpisodeStatistics, *envs: tuple[float, bool]) -> list[Episode]:
    reward, ended = zip(*envs, strict=True)
    return statistics.add(np.array(reward, dtype=np.float32), np.array(ended))


def test_three_environments_by_hand() -> None:
    statistics = EpisodeStatistics(3, window_episodes=2)
    assert math.isnan(statistics.recent_mean())
    assert add(statistics, (1.0, False), (2.0, False), (4.0, True)) == [Episode(4.0, 1)]
    assert statistics.recent_mean() == 4.0
    assert add(statistics, (-3.0, False), (0.0, False), (0.5, False)) == []
    # The first and the last end together, in environment order.
    ends = add(statistics, (1.0, True), (8.0, False), (0.5, True))
    assert ends == [Episode(-1.0, 3), Episode(1.0, 2)]
    assert statistics.recent_mean() == 0.0  # of the last two; the 4 is forgotten
    assert add(statistics, (5.0, True), (0.0, True), (0.0, False)) == [
        Episode(5.0, 1),
        Episode(10.0, 4),
    ]
    assert statistics.num_episodes == 5
    assert statistics.recent_mean() == 7.5


def test_episodes_continue_from_their_state() -> None:
    statistics = EpisodeStatistics(3, window_episodes=2)
    add(statistics, (1.0, True), (2.0, False), (4.0, True))
    other = EpisodeStatistics(3, window_episodes=2)
    other.load_state_dict(statistics.state_dict())
    for part in (statistics, other):
        assert add(part, (0.0, False), (1.0, True), (0.0, False)) == [Episode(3.0, 2)]
    assert other.recent_mean() == statistics.recent_mean() == 3.5
    assert other.num_episodes == statistics.num_episodes == 3


def test_environments_that_begin_anew_leave_no_half_episodes() -> None:
    statistics = EpisodeStatistics(3)
    add(statistics, (1.0, True), (2.0, False), (4.0, False))
    statistics.begin_new_episodes()
    assert add(statistics, (0.0, True), (0.0, True), (8.0, True)) == [
        Episode(0.0, 1),
        Episode(0.0, 1),
        Episode(8.0, 1),
    ]
    assert statistics.num_episodes == 4


@given(
    num_members=st.integers(1, 4),
    num_envs=st.integers(1, 3),
    gamma=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_episodes_of_members_are_those_of_each_alone(
    num_members: int, num_envs: int, gamma: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    alone = [EpisodeStatistics(num_envs, 3, gamma) for _ in range(num_members)]
    joined = [EpisodeStatistics(num_envs, 3, gamma) for _ in range(num_members)]
    members: MemberEpisodes | None = None
    for step in range(30):
        if step == 4:  # in the middle of episodes
            members = MemberEpisodes(joined)
        if step == 20:  # one member's state comes from elsewhere
            joined[-1].load_state_dict(alone[-1].state_dict())
        reward = rng.normal(size=(num_members, num_envs)).astype(np.float32)
        ended = rng.random((num_members, num_envs)) < 0.3
        for k in range(num_members):
            alone[k].add(reward[k], ended[k])
            if members is None:
                joined[k].add(reward[k], ended[k])
        if members is not None:
            members.add(reward.ravel(), ended.ravel())
    for one, other in zip(alone, joined, strict=True):
        assert_equal(one.state_dict(), other.state_dict())


def test_members_with_other_environments_are_refused() -> None:
    for other in (EpisodeStatistics(3), EpisodeStatistics(2, gamma=0.9)):
        with pytest.raises(ValueError, match="one gamma"):
            MemberEpisodes([EpisodeStatistics(2), other])


# -- progress --------------------------------------------------------------------------------------


def test_rate_of_a_resumed_run_counts_only_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = TrainingProgress(10_000)
    now += 30.0  # the checkpoint is read
    progress.begin_at(6_000)
    now += 10.0
    progress.update(6_500, {"return": -20.5, "loss": math.nan})
    assert progress.steps_per_second == 50.0
    assert capsys.readouterr().err == ("6,500/10,000 steps  50/s  ETA 1:10  return -20.5  loss -\n")
    now += 5.0
    progress.update(6_600, {})  # a line every half minute is enough
    assert capsys.readouterr().err == ""


def test_a_rate_is_not_known_before_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    progress = TrainingProgress(10_000)
    assert math.isnan(progress.steps_per_second)
    progress.update(0, {})
    assert capsys.readouterr().err == "0/10,000 steps  -/s  ETA -\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119.0, "119 s"), (121.0, "2 min"), (7_140, "119 min"), (7_320, "2 h 2 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "x.csv")
    log.write(1, {"a": np.float64(0.25), "b": np.float32("nan"), "c": np.int64(3)})
    log.close()
    assert (tmp_path / "x.csv").read_text() == "step,a,b,c\n1,0.25,,3\n"


def test_tensors_and_truth_values_are_written_as_numbers(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": torch.tensor(0.25), "b": torch.tensor([3]), "c": np.bool_(True)})
        log.write_evaluation(1, {"mean_return": torch.tensor(2.5)})
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b,c\n1,0.25,3,1\n"
    assert (tmp_path / "evaluations.csv").read_text() == "step,mean_return\n1,2.5\n"


@pytest.mark.parametrize("figure", [torch.zeros(2), np.zeros((2, 3)), np.zeros(0), "0.5", None])
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, figure: Any) -> None:
    with MetricsLog(tmp_path) as log:
        with pytest.raises(ValueError, match=r"loss .*a figure is"):
            log.write(1, {"loss": figure})
        log.write(2, {"loss": 0.5})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n2,0.5\n"


def test_means_count_each_name_by_itself() -> None:
    means = MeanMetrics()
    means.add({"a": torch.ones(1)})
    means.add({"b": torch.tensor([1.0, 1.0, 4.0])})
    means.add({"a": torch.tensor([3.0])})
    assert means.peek() == {"a": 2.0, "b": 2.0}
    other = MeanMetrics()
    other.load_state_dict(means.state_dict())
    other.add({"b": torch.tensor([6.0])})
    assert other.peek() == {"a": 2.0, "b": 3.0}
    # A checkpoint of an earlier version, with one count for all.
    other.load_state_dict({"sums": {"a": 4.0}, "count": 2})
    assert other.peek() == {"a": 2.0}


def test_events_end_in_one_line_where_the_disk_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before can be read, the CSV goes on, and no thread is there to complain."""
    threads = threading.active_count()
    with MetricsLog(tmp_path) as log:
        assert threading.active_count() == threads
        log.write(10, {"losses/td": 0.5})
        log.flush()

        def full(self: Any, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "write", full)
            log.write(20, {"losses/td": 0.25})
        log.write(30, {"losses/td": 0.125})
        log.flush()
    assert capsys.readouterr().err.splitlines() == [
        "warning: no more TensorBoard events: [Errno 28] No space left on device; the run goes on"
    ]
    assert scalars(tmp_path, "losses/td") == [(10, 0.5)]
    assert list(read_csv(tmp_path / "metrics.csv")["step"]) == [10, 20, 30]
