"""Parts of heads that several tasks share."""
