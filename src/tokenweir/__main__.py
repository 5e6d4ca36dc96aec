"""`tokenweir` and `python -m tokenweir`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from tokenweir.cli import app  # noqa: PLC0415 - importing the package must not build the command tree

    app()


if __name__ == "__main__":
    main()
