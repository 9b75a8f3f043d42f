"""POST /train: what is accepted, what becomes of it, and what is refused with which advice."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from configs.request import JOB_ID_PATTERN
from serve_app.capacity import Capacity, NodeCapacity
from tests.serve_app.api_kit import (
    BASE_URI,
    README_REQUEST,
    Api,
    Nudges,
    good_request,
    make_api,
    served,
)


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def test_the_request_of_the_readme_is_accepted_as_it_stands(api: Api) -> None:
    response = api.post(README_REQUEST)
    assert response.status_code == 202, response.text
    job = response.json()
    assert job["job_id"] == "hf-demo-001"
    assert (job["status"], job["engine"], job["backend"]) == ("queued", "trl", "hf-unsloth")
    assert job["log_uri"].endswith("/logs/hf-demo-001/")
    assert job["output_uri"].endswith("/results/hf-demo-001/")
    assert job["request"]["base_model"]["huggingface_token"] == "**********"


def test_the_job_can_be_read_where_location_says(api: Api) -> None:
    response = api.post(good_request())
    shown = api.http.get(response.headers["Location"])
    assert shown.json() == response.json()


def test_a_made_job_id_is_a_valid_one_and_sorts_by_time(api: Api) -> None:
    ids = [api.post(good_request()).json()["job_id"] for _ in range(3)]
    assert all(re.match(JOB_ID_PATTERN, job_id) for job_id in ids)
    assert ids == sorted(ids) and len(set(ids)) == 3
    assert ids[0].startswith("hf-unsloth-")


def test_secrets_lie_in_the_store_for_the_attempt_that_needs_them(api: Api) -> None:
    api.post(README_REQUEST)
    secrets = api.store.secrets("hf-demo-001")
    assert secrets["base_model.huggingface_token"] == "hf_launchpad_token"


def test_a_new_job_nudges_the_tracker_and_a_repeat_does_not(api: Api) -> None:
    api.post(README_REQUEST)
    api.post(README_REQUEST)
    assert api.nudges.count == 1


def test_a_failing_nudge_does_not_reach_the_client(tmp_path: Path) -> None:
    api = make_api(tmp_path, nudges=Nudges(ConnectionError("no tracker")))
    assert api.post(good_request()).status_code == 202
    assert api.nudges.count == 1


def test_log_and_output_folders_follow_from_the_dataset(api: Api) -> None:
    job = api.post(good_request(job_id="a-1")).json()
    assert job["log_uri"] == f"{BASE_URI}/logs/a-1/"
    assert job["output_uri"] == f"{BASE_URI}/results/a-1/"


def test_folders_that_cannot_be_derived_must_be_given(api: Api) -> None:
    error = api.refusal(good_request(datasets=[{"source": "s3://tests/rows.jsonl"}]))
    assert error["param"] == "artifacts.log_uri"
    assert "Set artifacts.log_uri" in error["details"][0]["hint"]


@pytest.mark.parametrize(
    ("backend", "engine"), [("nemo", "automodel"), ("meta", "fsdp2"), ("hf-unsloth", "trl")]
)
def test_each_api_runs_a_job_on_its_own_engine(tmp_path: Path, backend: str, engine: str) -> None:
    job = make_api(tmp_path, backend).post(good_request()).json()  # type: ignore[arg-type]
    assert (job["engine"], job["proxied_to"]) == (engine, None)


def test_what_meta_lacks_runs_on_nemo_and_stays_on_meta(tmp_path: Path) -> None:
    api = make_api(tmp_path, "meta")
    job = api.post(good_request(customization={"method": "qlora"})).json()
    assert (job["backend"], job["engine"], job["proxied_to"]) == ("meta", "automodel", "nemo")
    assert "customization.method" in job["engine_reason"]


def test_the_operator_can_simulate_every_job(tmp_path: Path) -> None:
    job = make_api(tmp_path, "nemo", engine="simulated").post(good_request()).json()
    assert job["engine"] == "simulated"
    assert "operator" in job["engine_reason"]


def test_a_method_that_the_engine_lacks_is_refused_with_who_can(tmp_path: Path) -> None:
    error = make_api(tmp_path, "nemo").refusal(good_request(customization={"method": "pissa"}))
    assert (error["code"], error["param"]) == ("unsupported", "customization.method")
    assert "'pissa'" in error["message"]
    assert "/hf-unsloth/train" in error["details"][0]["hint"]


def test_the_nemo_api_takes_nvidias_names(tmp_path: Path) -> None:
    job = (
        make_api(tmp_path, "nemo")
        .post(
            {
                "name": "in-nvidias-words",
                "config": "org/model",
                "dataset": f"{BASE_URI}/ingestion/rows.jsonl",
                "hyperparameters": {
                    "training_type": "sft",
                    "finetuning_type": "lora",
                    "epochs": 3,
                    "lora": {"adapter_dim": 8},
                },
            }
        )
        .json()
    )
    assert (job["job_id"], job["engine"]) == ("in-nvidias-words", "automodel")
    assert job["request"]["customization"]["lora"]["rank"] == 8
    assert job["request"]["tuning_parameters"]["num_epochs"] == 3


def test_nvidias_names_are_unknown_to_the_other_apis(api: Api) -> None:
    error = api.refusal(good_request(hyperparameters={"epochs": 3}))
    assert (error["code"], error["param"]) == ("request_invalid", "hyperparameters")


def test_a_reward_function_that_nobody_installed_is_refused(api: Api) -> None:
    custom = {"method": "lora", "objective": "grpo", "precision": "fp32"}
    ours = custom | {"grpo": {"reward_functions": ["exact_reference"]}}
    assert api.post(good_request(customization=ours)).status_code == 202
    error = api.refusal(
        good_request(customization=custom | {"grpo": {"reward_functions": ["os_system"]}})
    )
    assert error["param"] == "customization.grpo.reward_functions[0]"
    assert "exact_reference" in error["message"]


def test_remote_code_needs_the_operators_leave(tmp_path: Path) -> None:
    model = {"provider": "huggingface", "model_name": "org/model", "trust_remote_code": True}
    request = good_request(base_model=model)
    error = make_api(tmp_path / "a").refusal(request)
    assert (error["code"], error["param"]) == ("unsupported", "base_model.trust_remote_code")
    assert make_api(tmp_path / "b", allow_remote_code=True).post(request).status_code == 202


def test_local_models_need_a_folder(tmp_path: Path) -> None:
    request = good_request(base_model={"provider": "local", "model_name": "demo-llama"})
    assert make_api(tmp_path / "a").refusal(request)["param"] == "base_model.provider"
    assert make_api(tmp_path / "b", model_root=tmp_path).post(request).status_code == 202


def test_file_uris_need_a_root_and_stay_below_it(tmp_path: Path) -> None:
    def request(folder: Path) -> dict[str, object]:
        source = f"file://{folder}/users/u/projects/p/rows.jsonl"
        return good_request(datasets=[{"source": source}])

    inside, outside = tmp_path / "files", tmp_path / "files-of-others"
    assert make_api(tmp_path / "a").refusal(request(inside))["param"] == "datasets[0].source"
    api = make_api(tmp_path / "b", file_root=inside)
    assert api.post(request(inside)).status_code == 202
    error = api.refusal(request(outside))
    assert error["param"] == "datasets[0].source"
    assert str(inside) not in str(error)


def test_a_job_too_large_for_the_cluster_waits_unless_the_operator_refuses(tmp_path: Path) -> None:
    request = good_request(resources={"gpus": 4, "gpu_type": "A100"})
    assert make_api(tmp_path / "a").post(request).status_code == 202
    api = make_api(tmp_path / "b", refuse_unschedulable=True)
    assert api.post(request).status_code == 202, "nothing is known of the cluster yet"
    api.store.set_capacity(
        Capacity(nodes=[NodeCapacity(node_id="n1", cpus=2.0, memory_gb=8.0)]).model_dump_json()
    )
    error = api.refusal(request)
    assert (error["code"], error["param"]) == ("unschedulable", "resources")


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    api = make_api(tmp_path, max_queued_jobs=1)
    api.post(good_request())
    response = api.post(good_request())
    assert response.status_code == 429
    assert response.headers["Retry-After"].isdecimal()
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_capabilities_name_the_engines_of_this_api_only(api: Api) -> None:
    table = api.http.get("/capabilities").json()
    assert table["auto"] == ["unsloth", "trl"]
    assert {row["engine"] for row in table["engines"]} == {"trl", "unsloth", "simulated"}


def test_health_and_readiness(api: Api) -> None:
    assert api.http.get("/healthz").json() == {"status": "ok", "backend": "hf-unsloth"}
    assert api.http.get("/readyz").json()["capacity_known"] is False
    api.store.set_capacity("{}")
    assert api.http.get("/readyz").json()["capacity_known"] is True


@pytest.mark.parametrize("prefix", ["", "/hf-unsloth"])
def test_the_docs_work_behind_a_prefix(api: Api, prefix: str) -> None:
    http = TestClient(api.app, root_path=prefix)
    assert f"'{prefix}/openapi.json'" in http.get(f"{prefix}/docs").text
    document = http.get(f"{prefix}/openapi.json").json()
    assert document.get("servers", [{"url": ""}])[0]["url"] == prefix
    assert "TrainRequest" in document["components"]["schemas"]
    job = http.post(f"{prefix}/train", json=good_request())
    assert http.get(job.headers["Location"]).json()["job_id"] == job.json()["job_id"]


def test_every_reference_of_the_openapi_document_is_there(api: Api) -> None:
    document = api.app.openapi()
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert references <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in references


def test_a_real_server_answers_behind_a_prefix(api: Api) -> None:
    import httpx

    with served(api.app, "/hf-unsloth") as address:
        response = httpx.post(f"{address}/hf-unsloth/train", json=good_request())
        assert response.status_code == 202
        assert response.headers["Location"].startswith("/hf-unsloth/train/hf-unsloth-")
