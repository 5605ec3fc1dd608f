"""Every environment variable that this program reads, once, typed."""
