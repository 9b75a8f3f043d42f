"""Loss on rows that are not trained on, between two steps of a run. Called by `TrlLoop`."""

from typing import TYPE_CHECKING, Any

from train_loops.data.batches import validation_batches
from train_loops.engines.trl_trainers import summed_loss

if TYPE_CHECKING:
    from datasets import Dataset


def mean_loss(trainer: Any, rows: "Dataset", micro_batch_size: int) -> float:
    """Nats per trainable token of `rows`, the same on every rank.

    Dropout is off, so no random number is drawn.
    """
    import torch

    model, device = trainer.model_wrapped, trainer.args.device
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for batch in validation_batches(
            rows,
            micro_batch_size,
            rank=trainer.args.process_index,
            world_size=trainer.args.world_size,
        ):
            on_device = {name: value.to(device) for name, value in batch.items()}
            loss, count = summed_loss(model, on_device, fused=trainer.fused)
            totals += torch.stack([loss, count]).double()
    model.train(was_training)
    nats, tokens = trainer.accelerator.reduce(totals).tolist()
    return float(nats / max(tokens, 1))
