"""Sandboxes elsewhere: the protocol of SandboxFusion, its client and its server."""
