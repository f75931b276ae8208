"""KCA (arXiv 2401.10768): what a training instance asserts is examined before a model learns to say it.

A helper tells which instructions need facts, writes the knowledge behind each of those and a few questions on it; the
base model sits these exams; instances that it fails are given their knowledge (open-book), left out (discard) or
answered by an apology (refusal).

    records     instances and their questions, and the files in which they are found
    ready       what was found before, joined with the sources that it is told of
    prompts     what the helper and the judges are asked
    parsers     what their replies say, read tolerantly or as the published program reads them
    papers      the exam's prompts, and letters as tokens
    exam        the base model sits the exam
    partition   scores, classes, and what guessing would give
    calibrate   the training sets of the strategies
"""
