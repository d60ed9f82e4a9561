"""``python -m shardfeed``: the same as the command ``shardfeed``."""

from importlib import import_module

if __name__ == "__main__":
    try:
        command = import_module("shardfeed_cli.main")
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"the command line needs the distribution shardfeed[server] ({error}); try: pip install 'shardfeed[server]'"
        ) from None
    command.main()
