"""The parts that an algorithm is a value of: one module a family, each ending in the `TABLE` of its kinds."""
