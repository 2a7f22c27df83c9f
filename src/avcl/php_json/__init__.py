"""Imports the JSON configuration of PHP's authors (php.md, appendix A)."""
