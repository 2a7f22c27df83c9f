"""The orchestrator of AVCL: the command line, multi-task runs, comparison and reports."""
