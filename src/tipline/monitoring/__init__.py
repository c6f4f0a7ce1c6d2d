"""Pictures and the page of monitoring."""
