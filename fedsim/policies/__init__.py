"""One file, one paper: the rule of a server, beside its pseudo-code."""

ALIASES = {"inclusivefl": "embracingfl"}
"""Other names under which a paper is known, and the file that has it."""
