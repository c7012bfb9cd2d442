"""Training with a record that can be replayed: a thin LightningModule, the callback that records it, and the record."""

from attribution.training.record import Recorded, RecordError, TrainingRecord, require_record

__all__ = ["RecordError", "Recorded", "TrainingRecord", "require_record"]
