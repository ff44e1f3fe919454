raise SystemExit("data/prepare.py is now the command `python -m tools.prepare`")
