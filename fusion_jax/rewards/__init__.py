"""Rewards: rule-based verifiers, reward models, and the selection of preferred and dispreferred responses."""
