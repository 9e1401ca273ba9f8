"""What the command line is made of beside its list of commands (`cli.py`)."""
