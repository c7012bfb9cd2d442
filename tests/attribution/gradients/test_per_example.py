

def test_gradients_are_freed_at_once():
    """Claim: captured gradients are in no reference cycle, so their memory is free without garbage collection."""
    model = nn.Conv2d(1, 1, 3, padding=1)
    denoiser, x0, draws = setup_of(model)
    gc.disable()
    try:
        captured = PerExampleGradients(model).capture(denoiser, x0, draws)
        block, masked = weakref.ref(next(iter(captured.mean().values()))), captured.where(torch.ones(draws.timestep.shape))
        masked.mean()
        del captured, masked
        assert block() is None
    finally:
        gc.enable()
