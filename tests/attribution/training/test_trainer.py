"""The file that a checkpoint is written to."""

import pytest
import torch

from attribution.training.trainer import _DirectCheckpoints


def test_an_interrupted_save_ends_the_run_and_not_the_process(tmp_path, monkeypatch):
    """Claim: PyTorch's writer of a checkpoint may outlive the file that it writes to, as it does after a signal."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.serialization._open_zipfile_writer_buffer, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _DirectCheckpoints().save_checkpoint({"a": torch.zeros(1000)}, tmp_path / "x.ckpt")
