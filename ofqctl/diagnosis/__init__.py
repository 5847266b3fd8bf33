"""What oscillates in a model, where and why: from tracker states, latent weights, several checkpoints, live steps."""
