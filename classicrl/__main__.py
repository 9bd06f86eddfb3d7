"""``python -m classicrl``: the same as the command ``classicrl``."""

from classicrl.cli import main

if __name__ == "__main__":
    main()
