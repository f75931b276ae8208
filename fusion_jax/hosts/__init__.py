"""Several hosts at one job: how they come together, agree on what they see, and end together.

A mesh over all hosts needs `jax.distributed`. Hosts that write independent files do not: told their number and index,
they meet in a folder of a shared file system, and one that dies takes no other along.
"""
