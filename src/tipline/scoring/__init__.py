"""Bulk scoring: the plan, the work on one block, publishing a month."""
