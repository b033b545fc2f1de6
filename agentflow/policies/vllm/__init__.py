"""Policies served by vLLM: its servers, the weights that they are sent, and the policy that samples from them."""
