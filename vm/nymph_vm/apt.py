# SPDX-License-Identifier: MIT
"""Debian packages for the guest: from the host's mirrors, with lists and caches of our own."""

import re
from pathlib import Path

from nymph_vm.arch import AMD64, Arch
from nymph_vm.host import HarnessError, cache_folder, call, locked

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN, SECURITY = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
NEWER = "trixie-backports"  # has the source of the newest kernel


def sources(*more: str, release: str = "bookworm") -> str:
    """sources.list lines for a release of Debian, from the mirrors this host uses, else Debian's own.

    more: names of further suites of Debian.
    """
    if not KEYRING.exists():
        raise HarnessError(f"{KEYRING} is missing: `sudo apt-get install debian-archive-keyring`")
    uris = call(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], "asking apt")
    used = [uri.rstrip("/") for uri in uris.split()]
    main = next((uri for uri in used if uri.endswith("/debian")), DEBIAN)
    security = next((uri for uri in used if uri.endswith("/debian-security")), SECURITY)
    suites = [(main, suite) for suite in (release, *more)]
    if release != "sid":  # which has what is new in itself
        suites[1:1] = [(main, f"{release}-updates"), (main, f"{release}-backports")]
        suites.append((security, f"{release}-security"))
    return "".join(f"deb [signed-by={KEYRING}] {uri} {suite} main\n" for uri, suite in suites)


def host_options() -> list[str]:
    """How the host's apt reaches its mirrors (proxies and the like), for who ignores its configuration."""
    dump = call(["apt-config", "dump", "Acquire"], "asking apt")
    return re.findall(r"^(Acquire::(?:https?|Check)\S* .*);$", dump, re.MULTILINE)


def update(arch: Arch) -> None:
    """Fetch the lists of packages for that architecture, and for the host."""
    _apt_get(arch, "update")


def download(arch: Arch, packages: list[str], folder: Path) -> None:
    """Put the packages' .deb files into `folder`."""
    _apt_get(arch, "download", *packages, cwd=folder)


def depends(arch: Arch, package: str, *prefixes: str) -> list[str]:
    """The packages `package` depends on whose names start with one of `prefixes`."""
    text = call(["apt-cache", "-c", _config(arch), "depends", package], f"looking for {package}")
    found = re.findall(r"^\s*Depends: ([^\s:]+)", text, re.MULTILINE)
    return [name for name in dict.fromkeys(found) if name.startswith(prefixes)]


def _apt_get(arch: Arch, *arguments: str, cwd: Path | None = None) -> None:
    with locked(cache_folder() / "apt.lock"):
        try:
            call(["apt-get", "-q", "-c", _config(arch), *arguments], f"apt-get {arguments[0]}", cwd=cwd)
        except HarnessError as error:
            where = f"Is the network there? The packages come from:\n{sources(NEWER)}"
            raise HarnessError(f"{error}\n{where}") from None


def _config(arch: Arch) -> Path:
    """Read after the host's own configuration, so that proxies and the like stay the host's."""
    folder = cache_folder() / f"apt-{arch.debian}"
    archs = " ".join(f'"{each.debian}";' for each in {arch.debian: arch, AMD64.debian: AMD64}.values())
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(sources(NEWER))
    # Only what no other suite has comes from there.
    (folder / "preferences").write_text(f"Package: *\nPin: release n={NEWER}\nPin-Priority: 1\n")
    (folder / "status").touch()
    config = folder / "apt.conf"
    config.write_text(f"""
        Dir::State "{folder}"; Dir::State::status "{folder}/status"; Dir::Cache "{folder}";
        Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "/dev/null";
        Dir::Etc::preferences "{folder}/preferences"; Dir::Etc::preferencesparts "/dev/null";
        APT::Architecture "{arch.debian}"; APT::Architectures {{ {archs} }};
        APT::Default-Release ""; APT::Sandbox::User ""; Acquire::Languages "none";
        APT::Update::Error-Mode "any";
        #clear APT::Update::Post-Invoke;
        #clear APT::Update::Post-Invoke-Success;
    """)
    return config
