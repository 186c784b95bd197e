"""rkhs-serve: a service for submissions, and what its admin decides."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field

from robustbench_rkhs.cli.command import AsJson, Names, command, usable_device
from robustbench_rkhs.cli.screen import emit, printed
from robustbench_rkhs.cli.values import Count, Device, Folder
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.parsing import parse, with_fields

if TYPE_CHECKING:
    from robustbench_rkhs.service.settings import Settings

Port = Annotated[int, Field(ge=0, le=65535)]
EPS = ("0.25", "0.5", "1.0")
"""Radii of a service that was given none."""
VERBS = {
    "token": "NAME",
    "revoke": "NAME",
    "tokens": "",
    "waiting": "",
    "approve": "NUMBER",
    "rerun": "NUMBER",
    "hide": "NUMBER",
    "show": "NUMBER",
    "stop": "",
}
"""What an admin can do, and with what."""
PACKAGES = ("fastapi", "uvicorn", "sqlmodel", "huey", "python_multipart", "cryptography")


def _serve(
    typed: dict[str, Any],
    /,
    words: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    folder: Folder = Path("service"),
    out: Folder = Path("reports"),
    host: str = "127.0.0.1",
    port: Port = 8000,
    sample: Count = 100,
    device: Device = "auto",
    upload: str = "2GiB",
    limits: Names = (),
    moderated: bool = False,
    database: str = "",
    queue: str = "",
    scopes: Names = ("checkpoint", "adversarials"),
    hourly: Count = 10,
    reason: str = "",
    as_json: AsJson = False,
) -> None:
    """Serve the site of your results, take submissions, evaluate them one after the other, and show where each stands.

    $ rkhs-serve
    $ rkhs-serve --eps 0.5 --norm l2 --samples 1000 --moderated
    $ rkhs-serve admin token alice --scopes checkpoint --hourly 5
    $ rkhs-serve admin approve 3

    The first start makes a token and prints it once. Every field of the evaluation's recipe is a flag: the same protocol for all
    checkpoints. An admin's commands: admin token NAME, revoke NAME, tokens, waiting, approve NUMBER, rerun NUMBER, hide NUMBER
    --reason TEXT, show NUMBER, stop; each beside a service that runs or not.

    Args:
        words: admin and a command; nothing: serve.
        folder: Where the service keeps its databases, uploads, states and the site.
        out: Where verdicts and the leaderboard are.
        host: The address to listen on; 0.0.0.0 for every one of this machine's. Put a server with HTTPS before it.
        port: The port to listen on; 0: any that is free.
        sample: Images of the first look at a checkpoint.
        device: auto, cpu, cuda ...: where checkpoints are evaluated.
        upload: Most bytes of an upload, such as 300MB.
        limits: The most that a file may ask for and an evaluation may use, as NAME=VALUE ..., as of rkhs-submit.
        moderated: A person approves every submission before it is evaluated.
        database: SQLAlchemy's URL of another database than SQLite, such as postgresql+psycopg://...
        queue: redis://... for wake-up messages, in place of SQLite.
        scopes: Of a new token: what it may send.
        hourly: Of a new token: uploads in an hour.
        reason: Of hide: why, for everybody to read.
        as_json: Print one JSON object on stdout.
    """
    from robustbench_rkhs.runtime.extras import require

    for package in PACKAGES:
        require(package, "serve", "rkhs-serve")
    if words:
        found = _admin(words, folder.resolve(), scopes, hourly, reason, fields=sorted(typed))
        for line in found:
            printed(line, stderr=as_json)
        if as_json:
            emit({"lines": found})
        return
    from robustbench_rkhs.cli.settings import eval_recipe
    from robustbench_rkhs.service.settings import Settings

    recipe = eval_recipe({"eps": EPS} | typed, "rkhs-serve")
    stated: dict[str, Any] = {"folder": folder.resolve(), "out": out.resolve(), "database": database, "queue": queue}
    stated |= {"protocol": recipe.model_dump(mode="json", exclude_unset=True), "sample": sample, "device": usable_device(device)}
    stated |= {"upload": upload, "moderated": moderated}
    stated["limits"] = parse(Limits, with_fields({}, ",".join(limits), "--limits"), "--limits")
    _run(parse(Settings, stated, "rkhs-serve"), host, port, as_json)


def _run(settings: "Settings", host: str, port: int, as_json: bool) -> None:
    """Serve until Ctrl-C; the address, and the first token, are printed at the start."""
    from robustbench_rkhs.service.serving import Service
    from robustbench_rkhs.verdicts.store import table_paths

    def ready(address: str, token: str) -> None:
        printed(f"serving on {address}: Ctrl-C ends it", stderr=as_json)
        if token:
            printed(f"token of admin, shown only now: {token}", stderr=as_json)
        if count := len(table_paths(settings.out / "verdicts")):
            shown = f"{count} table{'s' * (count > 1)} of {settings.out.name}/verdicts"
            printed(f"the site shows everybody the {shown}, your own trials too: --out names another folder", stderr=as_json)
        if as_json:
            emit({"address": address} | ({"token": token} if token else {}))

    Service(settings, host, port).run(ready)


def _admin(words: tuple[str, ...], folder: Path, scopes: Names, hourly: int, reason: str, fields: list[str]) -> list[str]:
    """Do what the words say; the lines to print. Raises UserError."""
    from robustbench_rkhs.service.admin import Admin
    from robustbench_rkhs.service.serving import kept_settings, stop
    from robustbench_rkhs.service.settings import KINDS
    from robustbench_rkhs.service.token import make_token, revoke_token, tokens

    if words[0] != "admin":
        raise UserError(f"expected admin or no word, found {words[0]!r}")
    verb, *rest = [*words[1:], ""][: max(len(words) - 1, 1)]
    if verb not in VERBS:
        raise UserError(f"rkhs-serve admin: unknown command {verb!r}; {did_you_mean(verb, VERBS)}")
    if fields:
        raise UserError(f"--{fields[0].replace('_', '-')}: not for rkhs-serve admin")
    if len(rest) != bool(VERBS[verb]):
        raise UserError(f"expected rkhs-serve admin {verb} {VERBS[verb] or '(nothing more)'}, found {' '.join(rest) or 'nothing'}")
    if verb == "stop":
        return [f"the service, process {stop(folder)}, has ended"]
    admin = Admin(kept_settings(folder))
    match verb:
        case "token":
            if unknown := [one for one in scopes if one not in KINDS]:
                raise UserError(f"--scopes: unknown {unknown[0]!r}; {did_you_mean(unknown[0], KINDS)}")
            return [f"token of {rest[0]}, shown only now: {make_token(admin.database, rest[0], scopes, hourly)}"]
        case "revoke":
            revoke_token(admin.database, rest[0])
            return [f"the token of {rest[0]} is revoked"]
        case "tokens":
            return [
                f"{one.name}: {one.scopes}, {one.hourly} an hour{', revoked' if one.revoked_at else ''}"
                for one in tokens(admin.database)
            ]
        case "waiting":
            return admin.waiting() or ["nothing waits for a person"]
    if not rest[0].isascii() or not rest[0].isdigit() or len(rest[0]) > 9:
        raise UserError(f"rkhs-serve admin {verb}: expected the number of a submission, found {rest[0]!r}")
    number = int(rest[0])
    return [
        admin.hide(number, reason)
        if verb == "hide"
        else {"approve": admin.approve, "rerun": admin.rerun, "show": admin.show}[verb](number)
    ]


main = command(_serve, recipe={"eps": " ".join(EPS)}, quick=lambda typed: bool(typed.get("words")))
