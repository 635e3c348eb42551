"""The trainer: exactly the work that devices finished. torch, never SimPy."""
