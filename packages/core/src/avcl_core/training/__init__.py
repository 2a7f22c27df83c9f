"""The training loop, its order of samples, optimisers, checkpoints and preemption."""
