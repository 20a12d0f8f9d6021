# SPDX-License-Identifier: MIT
"""The command nymphd; also python3 -m pynymph.service."""

import sys
from collections.abc import Sequence

try:
    from pydantic import BaseModel, ValidationError
    from pydantic_settings import CliApp, CliSubCommand, SettingsError

    from pynymph.service.credentials import StartError
    from pynymph.service.log import set_up
    from pynymph.service.server import serve
    from pynymph.service.settings import Settings
except ModuleNotFoundError as missing:
    sys.exit(f"nymphd: there is no {missing.name}; pip install 'pynymph[service]'")


class Serve(Settings):
    """Serve the fabric over HTTPS until SIGTERM. Each option is an environment variable too, NYMPHD_...;
    docs/nymphd.md of the project has them all."""

    def cli_cmd(self) -> None:
        set_up(self.log_level)
        serve(self)


class Nymphd(BaseModel):
    """The fabric as a service."""

    serve: CliSubCommand[Serve]

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        CliApp.run(Nymphd, cli_args=list(sys.argv[1:] if arguments is None else arguments))
    except StartError as error:
        sys.exit(f"nymphd: {error}")
    except ValidationError as error:
        for wrong in error.errors():
            print(f"nymphd: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}", file=sys.stderr)
        sys.exit(2)
    except SettingsError as error:
        print(f"nymphd: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
