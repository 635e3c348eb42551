"""Figures and pages made from run folders. Never imports what simulates or trains."""
