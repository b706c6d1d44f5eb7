"""`python -m orchestrator`, and the `tidegate` command."""

from orchestrator.cli import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="tidegate")


if __name__ == "__main__":
    main()
