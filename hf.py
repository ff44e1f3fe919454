raise SystemExit("hf.py is now the command `python -m tools.hf`")
