"""Code of a Nemotron-NAS folder, for programs that take a folder's own: it is written beside the weights, and not run
here."""
