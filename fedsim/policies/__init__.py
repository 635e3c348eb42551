"""One file, one paper: the rule of a server, beside its pseudo-code."""
