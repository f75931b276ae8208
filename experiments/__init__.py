"""One page a method: settings, and a main that reads like the paper."""
