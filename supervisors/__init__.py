"""What ties actors and storage: supervision, caches, write-behind, budgets."""
