"""`dspy-toolkit serve`: programs behind an HTTP API, and the keys of those who may ask.

Not covered: what the routes do (`dspy_toolkit.serving`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from dspy_toolkit.serving.keys import StoredKey
    from dspy_toolkit.settings import Settings

INSTALL = "Serving needs FastAPI and uvicorn. Run `pip install 'dspy-toolkit[serve]'`."
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def serve(
    *,
    host: Annotated[str | None, Parameter(show_default=False)] = None,
    port: Annotated[int | None, Parameter(show_default=False)] = None,
    program: Annotated[tuple[str, ...], Parameter(name=["--program", "-p"], negative="", show_default=False)] = (),
) -> None:
    """Serve programs over HTTP until Ctrl-C or SIGTERM; requests that were accepted are finished.

    Args:
        host: Where to listen; serving.host (this machine alone) by default. Elsewhere at least one key is needed.
        port: serving.port (8000) by default; 0 takes a free one.
        program: A project (its champion, followed as it changes) or project@3; once for each. By default every project that has
            a champion.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    said = {"host": host, "port": port, "programs": program or None}
    serving = settings.serving.model_validate(
        {**settings.serving.model_dump(), **{name: value for name, value in said.items() if value is not None}}
    )
    settings = settings.model_copy(update={"serving": serving})
    show_log(settings)
    run_server(settings)


def run_server(settings: Settings) -> None:
    """Serve in this thread until a signal.

    Raises:
        SettingsError: the extra is not installed, the address cannot be had, or is open to others and there is no key.
        ToolkitError: a program cannot be loaded.
    """
    try:
        import uvicorn

        from dspy_toolkit.cli.boundary import show_lines
        from dspy_toolkit.serving import create_app
        from dspy_toolkit.serving.edge import ACCESS
        from dspy_toolkit.serving.keys import keys_file, read_keys
        from dspy_toolkit.serving.listening import Server, listen
        from dspy_toolkit.serving.service import Service
    except ImportError as error:
        if error.name and error.name.split(".")[0] in ("fastapi", "uvicorn", "limits", "pybreaker", "starlette"):
            raise SettingsError(INSTALL) from None
        raise
    serving = settings.serving
    if serving.host not in LOOPBACK and not read_keys(keys_file(settings)):
        raise SettingsError(
            f"{serving.host} can be reached from elsewhere, and there is no key. Run `dspy-toolkit serve keys add NAME`, or keep "
            "to 127.0.0.1."
        )
    with listen(serving.host, serving.port) as socket:
        # Before uvicorn: what cannot be loaded is one line then.
        service = Service(settings)
        service.load()
        config = uvicorn.Config(
            create_app(settings, service),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(serving.deadline_seconds) + 5,
        )
        show_lines(ACCESS.name)  # for whatever collects them
        Server(config, service).run(sockets=[socket])


def add_key(
    name: str,
    /,
    *,
    scope: Annotated[tuple[Literal["predict", "admin"], ...], Parameter(negative="", show_default=False)] = (
        "predict",
    ),
    json: Json = False,
) -> None:
    """Make a key and print it, this once.

    Args:
        name: Whose it is, for the list.
        scope: predict (the default) asks programs and gives feedback; admin also reads metrics, verdicts and prompts.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.serving.keys import add_key as add
    from dspy_toolkit.settings import load_settings

    made, text = add(load_settings(), name, scope)
    print(json_text({**_public(made), "key": text}, indent=2) if json else text)


def list_keys(*, json: Json = False) -> None:
    """List the keys: id, name, scopes, when they were made. What opens the door is not kept.

    Args:
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.serving.keys import keys_file, read_keys
    from dspy_toolkit.settings import load_settings

    found = read_keys(keys_file(load_settings()))
    if json:
        print(json_text([_public(key) for key in found], indent=2))
        return
    if not found:
        print("There is no key. Make one with `dspy-toolkit serve keys add NAME`.")
        return
    rows = [(key.id, key.name, " ".join(key.scopes), key.created) for key in found]
    console().print(listing(("id", "name", "scopes", "made"), rows))


def revoke_key(key: str, /, *, json: Json = False) -> None:
    """Take a key away; a server that runs refuses it from the next request on.

    Args:
        key: Its name or its id.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.serving.keys import revoke_key as revoke
    from dspy_toolkit.settings import load_settings

    gone = revoke(load_settings(), key)
    print(json_text(_public(gone), indent=2) if json else f"The key {gone.name} ({gone.id}) is revoked.")


def _public(key: StoredKey) -> dict[str, object]:
    """What may be shown of a key: all but what opens the door."""
    return key.model_dump(mode="json", exclude={"sha256"})
