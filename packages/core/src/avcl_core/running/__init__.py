"""One run from its configuration: what is built, where it is recorded, how it starts, stops and is taken up again."""
