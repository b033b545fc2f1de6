"""Engines: what holds a model's weights, scores tokens under them, and changes them."""
