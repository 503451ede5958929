"""The program: `balancer`, and `python -m balancer`."""

import sys


def main() -> int:
    """Run one verb with the arguments of this process. Returns its exit code.

    From here on Ctrl-C is one line and code 130, also while the modules of the command line are being loaded.
    """
    try:
        from balancer.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("balancer: interrupted; nothing was left half-written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
