"""Finished runs, copied to the tools in which people keep their experiments. Each is imported only when asked for."""
