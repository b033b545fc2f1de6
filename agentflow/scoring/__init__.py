"""The readers of a model: packing trajectories into a forest and scoring their tokens."""
