# SPDX-License-Identifier: MIT
"""The command nymphd, which is also python3 -m nymphd."""

import difflib
import os
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_settings import CliApp, CliSubCommand, SettingsError

from nymphd import __version__
from nymphd.credentials import StartError
from nymphd.log import set_up
from nymphd.settings import Settings


class Serve(Settings):
    """Serve the fabric over HTTPS until SIGTERM. Each option is an environment variable too, NYMPHD_...;
    docs/reference/nymphd.md of the project has them all."""

    def cli_cmd(self) -> None:
        set_up(self.log_level)
        from nymphd.server import serve  # here, as it takes a second, which no --help or refusal has to

        serve(self)


class Nymphd(BaseModel):
    """Serve the fabric over HTTPS."""

    serve: CliSubCommand[Serve]

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


def _check_environment() -> None:
    """Raise StartError for an environment variable NYMPHD_... that is no setting: users would rely on it."""
    known = {f"NYMPHD_{name}".upper() for name in Settings.model_fields}
    for name in sorted(name for name in os.environ if name.upper().startswith("NYMPHD_")):
        if name.upper() not in known:
            meant = difflib.get_close_matches(name.upper(), known, 1)
            instead = f"; did you mean {meant[0]}?" if meant else "; nymphd serve --help lists the settings"
            sys.exit(_refusal(f"there is no setting {name}{instead}"))


def _refusal(message: str) -> int:
    print(f"nymphd: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"nymphd {__version__}")
        return
    _check_environment()
    try:
        CliApp.run(Nymphd, cli_args=given)
    except StartError as error:
        sys.exit(f"nymphd: {error}")
    except ValidationError as error:
        sys.exit(
            _refusal(
                "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            )
        )
    except SettingsError as error:
        sys.exit(_refusal(str(error)))


if __name__ == "__main__":
    main()
