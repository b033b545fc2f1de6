"""The process backend: a warm interpreter forks for each execution, into namespaces of its own; see `backend`."""
