"""One file, one model: an ordered chain of named blocks."""
