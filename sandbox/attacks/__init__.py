"""Programs that try to get out of a sandbox, each with a judge who stands outside."""
