"""From the published file of a month to trips in the one schema."""
