"""Diffusion models: the noise schedule, the denoiser's calling convention, and samplers."""

from attribution.diffusion.schedule import Denoiser, NoiseSchedule, denoiser, eval_mode

__all__ = ["Denoiser", "NoiseSchedule", "denoiser", "eval_mode"]
