"""Training with a record that can be replayed: a thin LightningModule, the callback that records it, and the record."""

from attribution.training.record import Recorded, TrainingRecord

__all__ = ["Recorded", "TrainingRecord"]
