"""Hallucinations, refusals and overlap with references, as KCA is judged.

refusals    whether an answer refuses, and what nearly does
accounting  rates over all questions and over those that are answered, side by side
overlap     ROUGE of answers and references
"""
