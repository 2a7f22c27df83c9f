"""One file per tower; the file's name is the tower's name, and nothing here is imported before it is created."""
