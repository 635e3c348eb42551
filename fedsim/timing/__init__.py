"""The clock: what each device finishes when. SimPy, never torch."""
