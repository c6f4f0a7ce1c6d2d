"""Bulk scoring: plan the blocks, score a block on a worker, publish a month."""
