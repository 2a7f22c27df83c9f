"""Contract tests that anybody can run on a plug-in: toy tasks and runs, and checks that say which rule is broken."""
