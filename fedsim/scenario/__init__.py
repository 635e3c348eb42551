"""Scenarios: what one may write (`schema.py`), reading it with `file:line` errors (`read.py`), the open shelves (`shelves.py`)."""
