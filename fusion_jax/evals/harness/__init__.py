"""Models as a backend of the lm-eval package (`backend`, which alone imports it), and what the backend computes."""
