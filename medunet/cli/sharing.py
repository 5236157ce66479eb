"""The verbs that share a bundle: ``pack``, ``verify``, ``unpack``, ``keygen``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from medunet.cli.printing import Printer
from medunet.errors import UnsafeError

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the result here")]
Public = Annotated[Path | None, typer.Option("--key", metavar="PUB", help="public key that must have signed it")]


def register(app: typer.Typer, state: Printer) -> None:
    """Add the verbs to the command."""
    for make in (_pack, _verify, _unpack, _keygen):
        app.command(name=make.__name__.strip("_"))(make(state))


def _pack(state: Printer) -> Callable[..., None]:
    def pack(
        bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="trained bundle folder")],
        output: Annotated[Path, typer.Option("-o", metavar="NAME.zip", help="write the archive here")],
        fix: Annotated[bool, typer.Option("--fix", help="mend what is private, in the archive alone")] = False,
        sign: Annotated[Path | None, typer.Option("--sign", metavar="KEY", help="private key to sign with")] = None,
        json_file: Json = None,
    ) -> None:
        """Pack a trained bundle into one archive.

        Another hospital can verify it. Stops where something private or unsafe is in it.
        """
        from medunet import verbs

        packed = verbs.pack(bundle, output, fix=fix, key=sign, say=state.say)
        state.say(f"wrote {output}: {packed.name} {packed.version}, {packed.size / 1e6:.1f} MB, sha256 {packed.sha256}")
        if packed.signer:
            state.say(f"wrote {output}.sig: signed with {packed.signer}")
        _write_json(json_file, packed.as_json())

    return pack


def _verify(state: Printer) -> Callable[..., None]:
    def verify(
        source: Annotated[Path, typer.Argument(metavar="ZIP|FOLDER", help="packed bundle, or what it was unpacked to")],
        key: Public = None,
        json_file: Json = None,
    ) -> None:
        """Check a packed bundle.

        First everything that needs no running; if that is clean, the network with the reference image.
        """
        from medunet import verbs

        result = verbs.verify(source, key)
        _table(state, result)
        _write_json(json_file, result.as_json())
        if not result.verified:
            raise UnsafeError(f"{source}: is refused: {result.failure}")

    return verify


def _unpack(state: Printer) -> Callable[..., None]:
    def unpack(
        source: Annotated[Path, typer.Argument(metavar="ZIP", help="packed bundle")],
        output: Annotated[Path, typer.Option("-o", metavar="DIR", help="new or empty folder")],
        key: Public = None,
        json_file: Json = None,
    ) -> None:
        """Verify a packed bundle and unpack it.

        Nothing of it is run.
        """
        from medunet import verbs

        result = verbs.unpack(source, output, key)
        _table(state, result)
        state.say(f"unpacked to {output}    next: medunet predict {output} INPUT... -o OUT")
        _write_json(json_file, result.as_json())

    return unpack


def _keygen(state: Printer) -> Callable[..., None]:
    def keygen(
        output: Annotated[Path, typer.Option("-o", metavar="KEY", help="write the private key here, and KEY.pub")],
    ) -> None:
        """Make a pair of keys to sign with.

        One stays secret, the other (.pub) is given away.
        """
        from medunet import verbs

        found = verbs.keygen(output)
        state.say(f"wrote {output} (keep it secret) and {output}.pub (give it away)")
        state.say(f"fingerprint {found}")

    return keygen


def _table(state: Printer, result: Any) -> None:
    for check in result.checks:
        state.say(f"  {check.name:<10} {check.state:<8} {check.what}")
    verdict = "verified" if result.verified else "REFUSED"
    skipped = sum(check.state == "not run" for check in result.checks)
    state.say(f"{result.source}: {verdict}" + (f", {skipped} checks were not run" if skipped else ""))


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        from medunet.data.atomic import write_json

        write_json(path, content)
