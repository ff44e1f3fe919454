raise SystemExit("data/check.py is now the command `python -m tools.check`")
