"""``python -m podrt`` is the ``podrt`` command."""

from podrt.cli import main

if __name__ == "__main__":
    main()
