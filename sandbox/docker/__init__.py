"""The Docker backend: each program in a fresh container that was started ahead; see `backend`."""
