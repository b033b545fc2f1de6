"""Pure functions of arrays: advantages, ratios, losses, corrections."""
