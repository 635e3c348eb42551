"""The live dashboard: a Dash app over a folder of runs. Nothing here simulates; a planner may be handed in."""
