"""Find what oscillates in a model, where and why, from tracker states, latent weights, checkpoints and live steps."""
