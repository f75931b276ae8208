"""Sampling: KV cache, batched jitted generation, samplers."""
