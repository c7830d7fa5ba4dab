"""The diffusion process: schedules, targets, samplers and keyed noise, for any callable denoiser."""
