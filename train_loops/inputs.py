"""Brings model and data of a run to this machine's disk, once. Called by driver and workers.

The driver comes first, so that an unreadable model or a broken row ends the job before a worker,
or a GPU, is claimed.
"""

import logging
import shutil
from pathlib import Path

from filelock import FileLock

from configs.base_model import BaseModelSpec
from configs.errors import ConfigInvalid, DatasetInvalid, ModelAccess
from configs.settings import Settings
from train_loops import hub
from train_loops.data.prepare import inspect, prepare
from train_loops.engines.base import Inputs, find_engine
from train_loops.layouts import as_hugging_face, files_of
from train_loops.plan import Plan
from train_loops.stores.open import open_store
from train_loops.stores.s3 import S3Store

logger = logging.getLogger(__name__)


def fetch(plan: Plan, settings: Settings, hub_token: str | None, worker: str) -> Inputs:
    """Model and prepared data for `plan` on this machine; the second caller finds them ready.

    Raises:
        ModelAccess, DatasetInvalid, StorageFailed, ConfigInvalid
    """
    shared = job_folder(plan, settings)
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(shared / "inputs.lock"):
        model = _model(plan, settings, hub_token, shared)
        _data(plan, settings, model, shared)
    scratch = shared / f"attempt-{plan.attempt}" / worker
    scratch.mkdir(parents=True, exist_ok=True)
    return Inputs(model_folder=model, data_folder=shared / "data", scratch=scratch)


def job_folder(plan: Plan, settings: Settings) -> Path:
    """The job's folder on this machine."""
    return settings.scratch / plan.job_id


def clean(plan: Plan, settings: Settings) -> None:
    """Remove all that the job left on this machine's disk."""
    shutil.rmtree(job_folder(plan, settings), ignore_errors=True)


def _model(plan: Plan, settings: Settings, hub_token: str | None, shared: Path) -> Path:
    if not find_engine(plan.engine).uses_torch:
        return shared
    model = plan.spec.base_model
    if model.provider == "local":
        folder = _local_model(model.model_name, settings)
    elif model.provider == "s3":
        folder = _s3_model(model, shared / "model")
    else:
        folder = hub.snapshot(model, hub_token, settings.home.absolute() / "hub")
    return as_hugging_face(folder, model, shared)


def _local_model(name: str, settings: Settings) -> Path:
    if settings.model_root is None:
        raise ConfigInvalid("base_model.provider 'local' is off: TRAINER_MODEL_ROOT is not set")
    folder = (settings.model_root / name).resolve()
    if not folder.is_relative_to(settings.model_root.resolve()) or not folder.is_dir():
        raise ModelAccess(f"no folder {name!r} under the model root", param="base_model.model_name")
    return folder


def _s3_model(model: BaseModelSpec, folder: Path) -> Path:
    if folder.exists():
        return folder
    prefix, store = model.model_name.rstrip("/") + "/", S3Store()
    names = [item.uri.removeprefix(prefix) for item in store.list(prefix)]
    files = files_of(names, model)
    if files is None:
        raise ModelAccess(
            f"{prefix}: neither safetensors nor Meta's consolidated.*.pth with params.json",
            param="base_model.model_name",
        )
    part = folder.with_suffix(".part")
    for name in files.names:
        target = part / name
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get(prefix + name, target)
    part.rename(folder)
    return folder


def _data(plan: Plan, settings: Settings, model: Path, shared: Path) -> None:
    files = []
    for index, dataset in enumerate(plan.spec.datasets):
        path = shared / "sources" / f"{index}-{dataset.source.rsplit('/', 1)[-1]}"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            _download(dataset.source, path, settings, f"datasets[{index}].source")
        files.append((dataset, path))
    tuning, objective = plan.tuning, plan.spec.customization.objective
    if not find_engine(plan.engine).uses_torch:
        inspect(files, objective)
        return
    prepare(
        files,
        model,
        max_sequence_length=tuning.max_sequence_length,
        seed=tuning.seed,
        folder=shared / "data",
        objective=objective,
        packing=tuning.packing,
        validation_share=tuning.validation_share,
        trust_remote_code=plan.spec.base_model.trust_remote_code,
    )


def _download(uri: str, path: Path, settings: Settings, param: str) -> None:
    part = path.with_suffix(".part")
    try:
        open_store(uri, settings).get(uri, part)
    except FileNotFoundError:
        raise DatasetInvalid(f"{uri}: there is no such object", param=param) from None
    part.rename(path)
