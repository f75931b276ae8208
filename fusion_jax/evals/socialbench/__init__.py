"""SocialBench (RoleInteract, arXiv 2403.13679): the social intelligence of role-playing models, by choices and memory.

    from fusion_jax.evals.socialbench.records import load
    from fusion_jax.evals.socialbench.prompts import prompt_of, rewritten
    from fusion_jax.evals.socialbench.parsers import official
    from fusion_jax.evals.socialbench.scores import score

    items, = load(["self_awareness.json"])                     # records.py: what a file holds, checked
    prompt = prompt_of(items.items[0], rewritten())            # prompts.py: one text for a model of any kind
    letters = official("The answer is C.")                     # parsers.py: ("C",)
    score("Group-SAP-Neutral", "C.", ("C",), official)         # scores.py: 1.0, or None where nothing can be read

`aggregate` has the nine dimensions and their mean, `analysis` what else can be seen, `published` the paper's table.
sample.json is invented for this project, and rewritten_v1.json are prompts in this project's words: the benchmark's own
records and sentences have no licence that would let them be shipped.
"""
