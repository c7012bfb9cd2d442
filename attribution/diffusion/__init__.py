"""Diffusion models: forward processes, noise schedules, the denoiser's calling convention, and samplers."""

from attribution.diffusion.continuous import EDM, RectifiedFlow
from attribution.diffusion.denoiser import Denoiser, denoiser, eval_mode
from attribution.diffusion.process import DDPM, Process, as_ddpm
from attribution.diffusion.schedule import NoiseSchedule

__all__ = ["DDPM", "EDM", "Denoiser", "NoiseSchedule", "Process", "RectifiedFlow", "as_ddpm", "denoiser", "eval_mode"]
