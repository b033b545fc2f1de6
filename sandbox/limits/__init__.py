"""What bounds and measures executions: control groups, the tree of processes, the system-call filter."""
