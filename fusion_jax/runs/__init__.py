"""The desk of an experiment: run folder, stages, judging, report, figures."""
