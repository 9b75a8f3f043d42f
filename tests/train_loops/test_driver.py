"""One attempt's Ray Job: what it asks of the cluster, and what stands on its command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from configs.errors import ConfigInvalid, StorageFailed
from configs.job import EngineChanged, Order
from configs.settings import Settings
from tests.train_loops.plans import OrderingReporter, plan
from train_loops import driver
from train_loops.driver import scaling_config
from train_loops.engines.base import Inputs
from train_loops.inputs import job_folder
from train_loops.plan import Plan


def scaling(**resources: Any) -> Any:
    return scaling_config(plan(resources=resources, tuning_parameters={"batch_size": 64}))


def test_a_job_on_cpu_asks_for_its_cores_and_no_gpu() -> None:
    config = scaling(workers=2, cpus=8)
    assert config.num_workers == 2
    assert not config.use_gpu
    assert config.resources_per_worker == {"CPU": 4}


def test_a_job_on_gpus_has_one_worker_on_each() -> None:
    config = scaling(gpus=4, cpus=32)
    assert config.num_workers == 4
    assert config.use_gpu
    assert config.resources_per_worker == {"CPU": 8, "GPU": 1}


def test_a_kind_of_gpu_that_was_asked_for_is_asked_of_ray() -> None:
    assert scaling(gpus=4, gpu_type="A100").accelerator_type == "A100"
    assert scaling(gpus=4).accelerator_type is None


def test_memory_is_reserved_in_bytes_for_each_worker() -> None:
    config = scaling(gpus=4, memory_gb=256)
    assert config.resources_per_worker["memory"] == 64 * 2**30


def test_workers_keep_together_on_one_node() -> None:
    assert scaling(workers=4).placement_strategy == "PACK"


def test_workers_spread_over_several_nodes() -> None:
    assert scaling(workers=4, nodes=2).placement_strategy == "SPREAD"


class AskedTracker:
    """A `TrackerReporter` that answers each call from a table, and notes the calls."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, job_id: str) -> "AskedTracker":
        return self

    def call(self, method: str, *args: Any) -> Any:
        self.calls.append((method, *args))
        return self.answers[method]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each `ray.init`, which starts nothing here."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize("arguments", [[], ["--job-id", "job-1"], ["--attempt", "1"]])
def test_both_ids_are_required(arguments: list[str], started: list[dict[str, Any]]) -> None:
    with pytest.raises(SystemExit):
        driver.main(arguments)
    assert started == []


def test_an_attempt_that_lost_its_job_ends_at_once(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = AskedTracker({"plan": None})
    monkeypatch.setattr(driver, "TrackerReporter", tracker)
    assert driver.main(["--job-id", "job-1", "--attempt", "3"]) == 0
    assert tracker.calls == [("plan", "job-1", 3)]


def test_ray_is_told_no_secret_and_no_environment(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "TrackerReporter", AskedTracker({"plan": None}))
    driver.main(["--job-id", "job-1", "--attempt", "1"])
    assert [set(arguments) for arguments in started] == [{"namespace", "log_to_driver"}]


def test_the_plan_that_the_tracker_gives_is_the_one_that_runs(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Plan] = []
    given = plan(attempt=2)
    monkeypatch.setattr(driver, "TrackerReporter", AskedTracker({"plan": given.model_dump_json()}))
    monkeypatch.setattr(driver, "_attempt", lambda plan, *_: ran.append(plan) or 0)
    assert driver.main(["--job-id", "job-1", "--attempt", "2"]) == 0
    assert ran == [given]


def test_a_stop_before_the_workers_start_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_prepare", lambda plan, *_: (plan, Order(stop="cancel")))
    monkeypatch.setattr(driver, "_fit", lambda *_: pytest.fail("workers were started"))
    settings = Settings(_env_file=None, home=tmp_path)
    assert driver._attempt(plan(), settings, AskedTracker({})) == 0  # type: ignore[arg-type]


def test_what_lay_on_this_machine_is_removed_even_when_the_attempt_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Order:
        raise StorageFailed("the object store is away")

    monkeypatch.setattr(driver, "_prepare", fails)
    settings = Settings(_env_file=None, home=tmp_path)
    job_folder(plan(), settings).mkdir(parents=True)
    with pytest.raises(StorageFailed):
        driver._attempt(plan(), settings, AskedTracker({}))  # type: ignore[arg-type]
    assert not job_folder(plan(), settings).exists()


def fetched(tmp_path: Path, model_type: str) -> Inputs:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return Inputs(model_folder=tmp_path, data_folder=tmp_path, scratch=tmp_path)


def test_a_model_that_metas_own_engine_lacks_goes_to_nemos(tmp_path: Path) -> None:
    tracker = OrderingReporter()
    meta = plan(engine="fsdp2").model_copy(update={"backend": "meta"})
    found = driver._fitting(tracker, meta, fetched(tmp_path, "qwen3"))
    assert found.engine == "automodel"
    (event,) = tracker.events
    assert isinstance(event, EngineChanged)
    assert (event.engine, event.proxied_to) == ("automodel", "nemo")
    assert "qwen3" in event.engine_reason


def test_a_llama_stays_on_metas_own_engine(tmp_path: Path) -> None:
    tracker = OrderingReporter()
    meta = plan(engine="fsdp2").model_copy(update={"backend": "meta"})
    assert driver._fitting(tracker, meta, fetched(tmp_path, "llama")) == meta
    assert tracker.events == []


def test_a_named_engine_that_lacks_the_model_ends_the_job(tmp_path: Path) -> None:
    named = plan(engine="fsdp2", customization={"engine": "fsdp2"})
    meta = named.model_copy(update={"backend": "meta"})
    with pytest.raises(ConfigInvalid, match="qwen3"):
        driver._fitting(OrderingReporter(), meta, fetched(tmp_path, "qwen3"))
