"""What run folders say: times to accuracy, costs, and which policy is sooner. Never imports what simulates."""
