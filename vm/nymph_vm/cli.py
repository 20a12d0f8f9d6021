# SPDX-License-Identifier: MIT
"""The command nymph-vm."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from nymph_vm import build as builder
from nymph_vm import coverage, endpoint, kernels, nymphd, project, root, server, slots, suite
from nymph_vm.arch import AMD64, ARCHS, UM
from nymph_vm.faults import KINDS, Fault
from nymph_vm.fuzz import campaign, planted, sources
from nymph_vm.host import HarnessError, console
from nymph_vm.machine import Machine
from nymph_vm.slots import Slots
from nymph_vm.state import COMPLAINED, LOST, State, VMLost, log_tail, states

COVERAGE_KERNEL = "debug-6.1"

kernel_option = click.option(
    "--kernel",
    type=click.Choice(kernels.NAMES),
    help=f"The guest's; left out: {kernels.named(None, AMD64.name)}, or {kernels.named(None, UM.name)}.",
)
arch_option = click.option(
    "--arch",
    type=click.Choice(list(ARCHS)),
    default=AMD64.name,
    show_default=True,
    help="The guest's architecture; um: a native guest (user-mode Linux), at the host's own speed.",
)
memory_option = click.option("--memory", default="4G", show_default=True, help="The guest's memory.")
image_option = click.option(
    "--image",
    type=click.Choice(list(root.IMAGES)),
    default=root.PLAIN,
    show_default=True,
    help="The guest's disk; that with systemd has nymphd run.",
)
endpoints_option = click.option(
    "--endpoints",
    type=click.IntRange(0, 8),
    help="How many endpoints, each on a root port of its own; left out: as nymph-vm.toml says.",
)
board_option = click.option(
    "--board", is_flag=True, help="The NYMPH board instead: a switch with an NVMe drive and four endpoints."
)


class FaultType(click.ParamType[Fault]):
    name = "fault"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Fault:
        try:
            return Fault.parse(value)
        except ValueError as error:
            self.fail(str(error))


fault_option = click.option(
    "--fault",
    "faults",
    type=FaultType(),
    multiple=True,
    metavar="KIND[:NAME=N,...]",
    help="What goes wrong with all endpoints; see nymph-vm faults --help.",
)
endpoint_option = click.option(
    "--endpoint", "endpoint_", default="ep0", show_default=True, help="Which endpoint."
)
name_option = click.option("--name", default="nymph", show_default=True, help="Which machine.")
command_argument = click.argument("command", nargs=-1, type=click.UNPROCESSED)


@click.group()
def cli() -> None:
    """Build a kernel module and try it in a virtual machine, without root.

    The module is that of the nearest nymph-vm.toml, from the working directory upwards.

    Exit status: that of the guest's command; but 120 if the guest's kernel complained, 121 if it panicked,
    122 if it hung, 123 if QEMU ended, 125 if nymph-vm could not do its part, 130 after Ctrl-C.
    """


@cli.command()
@kernel_option
@arch_option
@memory_option
@image_option
@endpoints_option
@board_option
@fault_option
@click.option(
    "--pci",
    multiple=True,
    metavar="WHERE:CLASS",
    help="A PCI function in Python, in FILE.py or a module, for a native guest; see nymph_vm.pci.",
)
@click.option(
    "--append",
    default="",
    metavar="TEXT",
    help="More for the kernel's command line; as for pytest, pcie_nymph.PARAMETER=VALUE is for the module.",
)
@click.option("--name", help="The machine's name, for others to find it.")
@click.option(
    "--copy",
    "copies",
    multiple=True,
    metavar="PATH",
    help="Copy it, or what it links to, into the working directory.",
)
@command_argument
def run(
    kernel: str | None,
    arch: str,
    memory: str,
    image: str,
    endpoints: int | None,
    board: bool,
    faults: tuple[Fault, ...],
    pci: tuple[str, ...],
    append: str,
    name: str | None,
    copies: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    """Boot, load the module, and run COMMAND as root; without COMMAND, a shell.

    COMMAND has the copied paths in its working directory, and can import pynymph if that is the project. What
    it leaves in dist/ there is copied to dist/ here.
    """
    layout = _slots(arch, endpoints, board)
    for path in copies:
        if not Path(path).exists():
            raise HarnessError(f"--copy {path}: there is no such file or folder")
    name = name or f"run-{os.getpid()}"
    key = kernels.named(kernel, arch)
    with Machine(
        name,
        kernel=key,
        memory=memory,
        image=image,
        slots=layout,
        faults=faults,
        pci=pci,
        append=append,
        on_complaint=_show_complaint,
    ) as machine:
        for path in copies:
            machine.copy_in(path)
        status = _status(machine.run(command, check=False, tty=_on_terminal(), stdout=None).returncode)
        machine.copy_out("dist")
        status = _gate(machine, status)
    sys.exit(status)


def _gate(machine: Machine, status: int) -> int:
    """The exit status, where a command itself had `status`: another, if the guest's kernel complained."""
    complaints, taint = machine.complaints(), machine.taint()
    if not complaints and not taint:
        return status
    tainted = f", and is tainted ({taint:#x})" if taint else ""
    console.print(f"nymph-vm: the guest's kernel complained{tainted}; the end of its log:")
    console.out(log_tail(machine.state.folder))
    console.print(f"nymph-vm: the kernel complained; the command itself exited with status {status}")
    return COMPLAINED


@cli.command()
@click.option(
    "--kernel", "names", type=click.Choice(kernels.NAMES), multiple=True, help="Not those of nymph-vm.toml."
)
@memory_option
def test(names: tuple[str, ...], memory: str) -> None:
    """Run the test of nymph-vm.toml on each of its kernels, each in a new machine.

    The test runs as root in /nymph/repo, where the guest has the project, read-only. The exit status is that
    of the first kernel on which the test failed, if there is one.
    """
    ours = project.here()
    if ours.test is None:
        raise HarnessError(f"{ours.folder / project.NAME} has no test: add one, a shell command")
    table = Table("kernel", "status", "test")
    worst = 0
    for name in names or ours.kernels:
        status = _test_on(name, ours.test, memory)
        worst = worst or status
        table.add_row(name, str(status), _meaning(status))
    Console().print(table)
    sys.exit(worst)


def _test_on(kernel: str, test: str, memory: str) -> int:
    """The exit status of the test on that kernel. A machine that is lost is said to be, and is no error."""
    key = kernels.named(kernel, AMD64.name)
    try:
        with Machine(
            f"test-{os.getpid()}", kernel=key, memory=memory, on_complaint=_show_complaint
        ) as machine:
            command = ["sh", "-c", f"cd {project.IN_GUEST}\n{test}"]
            status = _status(machine.run(command, check=False, tty=_on_terminal(), stdout=None).returncode)
            return _gate(machine, status)
    except VMLost as lost:
        console.print(f"nymph-vm: {lost}", markup=False)
        return lost.exit_status


def _meaning(status: int) -> str:
    lost = {number: meaning for number, meaning in LOST.values()}
    others = {0: "passed", COMPLAINED: "the guest's kernel complained"}
    return (lost | others).get(status, "failed")


def _status(returncode: int) -> int:
    """An exit status as shells have it, if ssh itself died of a signal, too."""
    return returncode if returncode >= 0 else 128 - returncode


@cli.command()
@kernel_option
@arch_option
@memory_option
@image_option
@endpoints_option
@board_option
@fault_option
@name_option
def up(
    kernel: str | None,
    arch: str,
    memory: str,
    image: str,
    endpoints: int | None,
    board: bool,
    faults: tuple[Fault, ...],
    name: str,
) -> None:
    """Boot a machine that stays, with the project's modules loaded."""
    layout = _slots(arch, endpoints, board)
    key = kernels.named(kernel, arch)
    built = builder.prepare(key)  # here, where its progress can be seen
    root.prepare(built.kernel.arch, image)
    server.start(name, kernel=key, memory=memory, image=image, slots=layout, faults=faults)
    click.echo(
        f"{name} is up; a shell in it: nymph-vm ssh --name {name}; its end: nymph-vm down --name {name}"
    )


@cli.command()
@kernel_option
@memory_option
@endpoints_option
@board_option
@fault_option
@click.option("--name", default="serve", show_default=True, help="The machine's name.")
@click.option("--port", default=nymphd.PORT, show_default=True, help="On the host; if it is taken, another.")
def serve(
    kernel: str | None,
    memory: str,
    endpoints: int | None,
    board: bool,
    faults: tuple[Fault, ...],
    name: str,
    port: int,
) -> None:
    """Boot a machine with nymphd, and say where the host finds it, and its token. Ctrl-C ends it."""
    project.pynymph()
    with Machine(
        name,
        kernel=kernels.named(kernel, AMD64.name),
        memory=memory,
        image="systemd",
        slots=_slots(AMD64.name, endpoints, board),
        faults=faults,
        on_complaint=_show_complaint,
    ) as machine:
        service = nymphd.reach(machine, port)
        click.echo(f"nymphd:  {service.url}/\ntoken:   {service.token}")
        click.echo(f"more:    nymph-vm ssh --name {name} -- journalctl -fu nymphd;  the end: Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            machine.wait()


def _slots(arch: str, endpoints: int | None, board: bool) -> Slots:
    if board and endpoints is not None:
        raise HarnessError("--board has four endpoints of its own: leave out --endpoints")
    count = project.here().endpoints if endpoints is None else endpoints
    return slots.board() if board else slots.usual(ARCHS[arch], count)


@cli.command()
@click.option("--user", type=click.Choice(root.USERS), default=root.USERS[0], show_default=True)
@name_option
@command_argument
def ssh(user: str, name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a machine that is up; without COMMAND, a shell."""
    state = State.read(name)
    status = _status(subprocess.run(state.ssh(user, command, ["-t"] * _on_terminal())).returncode)
    if status == 255 and subprocess.run(state.ssh(user, ["true"]), capture_output=True).returncode:
        raise state.loss()  # not the command's status, but ssh's: the guest is gone
    sys.exit(status)


@cli.command(epilog="KIND is one of:\n\n" + "\n\n".join(f"{kind}: {what}" for kind, what in KINDS.items()))
@name_option
@endpoint_option
@click.option("--none", is_flag=True, help="Nothing goes wrong any more.")
@click.argument("faults", nargs=-1, type=FaultType(), metavar="[KIND[:NAME=N,...]]...")
def faults(name: str, endpoint_: str, none: bool, faults: tuple[Fault, ...]) -> None:
    """Have an endpoint of a machine go wrong, in these ways and no others; without any, show how it does.

    Each fault strikes descriptors at random: with probability `rate`, as drawn with `seed`; not the first
    `after` of a channel; at most `count` times on each; on one `channel`, or on all. For example
    flip:rate=0.01,seed=7
    """
    if none and faults:
        raise HarnessError("--none and faults: say one of them")
    state = State.read(name)
    question = {"faults": [asdict(fault) for fault in faults]} if none or faults else {}
    answer = endpoint.ask(state.folder, endpoint_, **question)
    table = Table("fault", "what goes wrong", "injected")
    for fault in (Fault(**each) for each in answer["faults"]):
        table.add_row(str(fault), KINDS[fault.kind], str(answer["injected"][fault.kind]))
    Console().print(table if answer["faults"] else "nothing is to go wrong")


@cli.command()
@name_option
@endpoint_option
def unplug(name: str, endpoint_: str) -> None:
    """Take an endpoint out of its slot, whatever it is doing."""
    server.ask(State.read(name), "unplug", endpoint_)


@cli.command()
@name_option
@endpoint_option
def plug(name: str, endpoint_: str) -> None:
    """Put an endpoint into a slot that `unplug` emptied."""
    server.ask(State.read(name), "plug", endpoint_)


@cli.command()
@name_option
def down(name: str) -> None:
    """End a machine."""
    State.read(name).end()


@cli.command()
def status() -> None:
    """List the machines."""
    columns = ("name", "state", "kernel", "accel", "memory", "port", "pid")
    table = Table(*columns)
    for state in states():
        table.add_row(*(str(getattr(state, column)) for column in columns))
    Console().print(table)


@cli.command()
@name_option
def logs(name: str) -> None:
    """Show the kernel log of a machine, all of it."""
    click.echo((State.read(name).folder / "console.log").read_text(errors="replace"))


@cli.command()
@kernel_option
@arch_option
def build(kernel: str | None, arch: str) -> None:
    """Build what is missing for a guest with this kernel, and say where the modules are."""
    for module in builder.prepare(kernels.named(kernel, arch)).modules:
        click.echo(module)


@cli.command()
@arch_option
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- GCC OPTION...]")
def program(arch: str, source: Path, options: tuple[str, ...]) -> None:
    """Compile a C program for guests, and say where it is. One of pynymph may include pcie_nymph.h."""
    click.echo(builder.program(source, *options, arch=ARCHS[arch]))


@cli.command()
@arch_option
def lint(arch: str) -> None:
    """Check the modules' sources: W=1 and sparse for Debian's kernels, and checkpatch.pl --strict.

    Those of pynymph, also for padding, and that they build for kernels that lack something: half of the 64
    bits, CPUs, PCI, dma-bufs.
    """
    ours = project.here()
    folders = [ours.source, *((builder.PLANTED, builder.TEST_MODULES) if ours.is_pynymph else ())]
    found = builder.checkpatch(*folders)
    for kernel in kernels.stock(arch):
        for folder in folders:
            found += builder.lint(folder, kernel)
    if ours.is_pynymph:
        found += builder.structs()
        if arch == AMD64.name:
            found += builder.lint_configurations(ours.source)
    click.echo("\n".join(found) or "the modules' sources are clean")
    sys.exit(1 if found else 0)


@cli.command("kernels")
def list_kernels() -> None:
    """List the kernels there are."""
    table = Table("name", "arch", "flavour", "release", "cached")
    for key, source in kernels.KERNELS.items():
        release = kernels.cached_release(key)
        series = f"{source.series.rstrip('.')}.x"
        name, arch = kernels.split(key)
        table.add_row(name, arch, source.flavour, release or series, "yes" if release else "no")
    Console().print(table)


@cli.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST ARGUMENT...]")
def matrix(arguments: tuple[str, ...]) -> None:
    """Run pynymph's guest tests and KUnit on every kernel for amd64 and a native one; show one table."""
    project.pynymph()
    table = Table(
        "kernel", "arch", "flavour", "passed", "failed", "log lines", "boot time", title="guest tests"
    )
    status = 0
    for key, source in kernels.KERNELS.items():
        name, arch = kernels.split(key)
        if arch != AMD64.name and key != kernels.NATIVE:
            continue
        run = suite.run(key, arguments)
        status = status or run.status
        failed = str(run.failed) if run.whole else f"{run.failed}, cut short"
        log, boot = (run.properties.get(each) for each in ("complaints", "boot_seconds"))
        seconds = f"{float(boot):.1f} s" if boot else "?"
        table.add_row(name, arch, source.flavour, str(run.passed), failed, log or "?", seconds)
    Console().print(table)
    sys.exit(status)


@cli.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long; with --planted, for each bug.")
@click.option("--kernel", type=click.Choice(kernels.NAMES), default="plain-7", show_default=True)
@click.option("--arch", type=click.Choice([AMD64.name, UM.name]), default=UM.name, show_default=True)
@fault_option
@click.option("--unbind", is_flag=True, help="Unbind and bind the endpoint's driver meanwhile.")
@click.option("--seed", type=int, help="Of the random numbers; left out: another one each time.")
@click.option(
    "--corpus", type=click.Path(path_type=Path), help="Programs to begin with; left out: tests/fuzz/corpus."
)
@click.option("--replay", type=click.Path(exists=True, path_type=Path), help="Run a file's programs only.")
@click.option(
    "--planted", "plant", is_flag=True, help="Show how soon the bugs of tests/fuzz/planted are found."
)
def fuzz(
    minutes: float,
    kernel: str,
    arch: str,
    faults: tuple[Fault, ...],
    unbind: bool,
    seed: int | None,
    corpus: Path | None,
    replay: Path | None,
    plant: bool,
) -> None:
    """Fuzz the requests of /dev/pcie_nymph, guided by the code that they reach.

    What goes wrong is written to dist/fuzz, with the programs that cause it. Exit status: 1 if anything did.
    """
    ours = project.pynymph()
    key = kernels.named(kernel, arch)
    target = campaign.Target(key, sources.prepare(key), faults, unbind)
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    programs = campaign.load(corpus or ours.folder / "tests/fuzz/corpus")
    name = f"fuzz-{os.getpid()}"
    if plant:
        sys.exit(planted.show(target, name, minutes, seed, programs))
    output = ours.folder / "dist/fuzz"
    output.mkdir(parents=True, exist_ok=True)
    if replay is not None:
        found = campaign.replay(target, name, campaign.load(replay), campaign.REPEATS)
        click.echo(found.log if found else "nothing went wrong")
        sys.exit(1 if found else 0)
    console.print(f"nymph-vm: seed {seed}")
    run = campaign.Campaign(
        target, name=name, seed=seed, corpus=programs, keep=output / "corpus.txt",
        on_finding=lambda finding: campaign.write(output, finding),
    )  # fmt: skip
    run.run(minutes)
    for finding in run.findings:
        click.echo(f"found: {finding.title}")
    sys.exit(1 if run.findings else 0)


@cli.command("coverage")
def cover() -> None:
    """Run pynymph's guest tests and KUnit on debug-6.1; show how much of the module's code they ran."""
    ours = project.pynymph()
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "gcov.tar"
        run = suite.run(COVERAGE_KERNEL, [f"--gcov={counts}"])
        if not counts.exists():
            raise HarnessError("no coverage, because the tests did not come to an end")
        files = coverage.report(COVERAGE_KERNEL, counts)
    table = Table("file", "lines", "of", "", "branches", "of", "", title="coverage of the module")
    every = {**files, "all": coverage.total(files)}
    for name, file in every.items():
        table.add_row(name, *_share(file.lines, file.all_lines), *_share(file.branches, file.all_branches))
    Console().print(table)
    target = ours.folder / "dist/coverage.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({name: file.as_json() for name, file in every.items()}, indent=2) + "\n")
    sys.exit(run.status)


def _share(part: int, of: int) -> tuple[str, str, str]:
    return str(part), str(of), f"{part / of:.1%}" if of else "-"


def _on_terminal() -> bool:
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _show_complaint(text: str) -> None:
    console.print(f"nymph-vm: the guest's kernel complains: {text}", markup=False)


def main() -> None:
    """Errors of ours are one clear message and an exit status, never a traceback."""
    try:
        cli(standalone_mode=False)
    except HarnessError as error:
        console.print(f"nymph-vm: {error}", markup=False)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
