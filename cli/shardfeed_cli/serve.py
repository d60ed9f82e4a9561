"""`shardfeed serve`: one loader server, from options or from a configuration file."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shardfeed_wire.errors import ShardfeedError

if TYPE_CHECKING:
    from shardfeed_cli.progress import Meter
    from shardfeed_server.config import ServerConfig
    from shardfeed_server.serve import Serving

__all__ = ["serve"]

_LONG_LINE = 1_000
"""Of as many characters a line is printed without colours: rich looks for them in quadratic time."""


def serve(
    shards: Annotated[
        list[str] | None,
        typer.Argument(help="Shards: paths or URLs, braces expand: 'data/train-{000000..000007}.tar'."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Serve what a TOML file says, instead of SHARDS.")] = None,
    stream: Annotated[str, typer.Option(help="The stream's name.")] = "default",
    fields: Annotated[
        str | None, typer.Option(help="Fields: 'jpg;png cls' for tuples, 'image=jpg;png label=cls' for dicts.")
    ] = None,
    decode: Annotated[str | None, typer.Option(help="Imagespec of the pictures.  [default: rgb8]")] = None,
    resize: Annotated[str | None, typer.Option(help="224 (shorter side) or 224x224; before --transform-op.")] = None,
    transform_op: Annotated[
        list[str] | None, typer.Option(help="A built-in transform, such as 'center_crop=224' or 'flip'; repeatable.")
    ] = None,
    transform: Annotated[str | None, typer.Option(help="A Python transform, MODULE:NAME.")] = None,
    manifest: Annotated[
        str | None, typer.Option(help="The manifest made by `shardfeed index`: a path or a URL.")
    ] = None,
    exclude_bad: Annotated[bool, typer.Option("--exclude-bad", help="Leave bad shards out.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Serve those of the manifest's shards that are here.")
    ] = False,
    max_pixels: Annotated[int | None, typer.Option(help="A larger picture is bad, and never decoded.")] = None,
    block_bytes: Annotated[int | None, typer.Option(help="Bytes of shard that are shuffled as one.")] = None,
    bind: Annotated[
        list[str] | None, typer.Option(help="Endpoint to listen on; repeatable.  [default: tcp://127.0.0.1:7880]")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow addresses that other machines reach, without authentication."),
    ] = False,
    curve: Annotated[
        str | None,
        typer.Option(help="The server's key file, of `shardfeed keygen`: encrypt, and let known clients in."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The server's stable name.  [default: host and port]")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.  [default: one a core]")] = None,
    code_dir: Annotated[str | None, typer.Option(help="Folder that Python transforms are imported from.")] = None,
    send_bytes: Annotated[int | None, typer.Option(help="Bound on finished, unsent answers in bytes.")] = None,
    shared_bytes: Annotated[
        int | None, typer.Option(help="Bound on memory lent to clients on this machine in bytes; 0 for none.")
    ] = None,
    answer_cache_bytes: Annotated[
        int | None, typer.Option(help="Bytes of finished answers kept for equal requests; 0 for none.")
    ] = None,
    queue_requests: Annotated[int | None, typer.Option(help="Bound on waiting requests.")] = None,
    sample_timeout: Annotated[
        float | None, typer.Option(help="Seconds at one sample after which a worker is replaced.")
    ] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="Bytes of far shards' blocks that are kept.  [default: 2147483648]")
    ] = None,
    cache_dir: Annotated[str | None, typer.Option(help="Folder to keep them in.  [default: in memory]")] = None,
    http: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of health and figures, or 'off'.  [default: 127.0.0.1:9880, or a free port]"),
    ] = None,
    http_public: Annotated[
        bool, typer.Option("--http-public", help="Allow an HTTP address that other machines reach.")
    ] = False,
    push: Annotated[
        list[str] | None,
        typer.Option(help="Send batches to programs without our protocol: zpush://127.0.0.1:7890; repeatable."),
    ] = None,
    push_batch_size: Annotated[int, typer.Option(min=1, help="Samples of a batch of each --push.")] = 64,
    no_push: Annotated[bool, typer.Option("--no-push", help="Send nothing, whatever the file says.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log JSON on stderr, one line an event, and print nothing else.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when the configuration or code in the code folder changes.")
    ] = False,
    end_with: Annotated[int | None, typer.Option(hidden=True, help="End when this inherited pipe closes.")] = None,
    remove_folder: Annotated[
        bool, typer.Option("--remove-folder", hidden=True, help="Remove the Unix sockets' folders at the end.")
    ] = False,
) -> None:
    """Serve shards: read, decode, augment and batch them for trainers, until SIGTERM or Ctrl-C.

    Either SHARDS and --fields, or --config with one stream or several; with --config, the options
    about the server count instead of what the file says.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until the server's loop takes over: loading takes seconds
    of_stream = {
        "fields": fields,
        "decode": decode,
        "resize": resize,
        "transform_op": transform_op,
        "transform": transform,
        "manifest": manifest,
        "exclude_bad": exclude_bad,
        "partial": partial,
        "max_pixels": max_pixels,
        "block_bytes": block_bytes,
    }
    of_server = {
        "bind": bind,
        "insecure": insecure,
        "curve": curve,
        "name": name,
        "workers": workers,
        "code_dir": code_dir,
        "send_bytes": send_bytes,
        "shared_bytes": shared_bytes,
        "answer_cache_bytes": answer_cache_bytes,
        "queue_requests": queue_requests,
        "sample_timeout": sample_timeout,
        "cache_bytes": cache_bytes,
        "cache_dir": cache_dir,
        "http": http,
        "http_public": http_public,
        "outputs": [{"url": url, "batch_size": push_batch_size} for url in push or []],
    }
    _check_usage(shards or [], config, _given(of_stream) | ({} if stream == "default" else {"stream": stream}))
    if reload and end_with is not None:
        raise typer.BadParameter("cannot be had together with --end-with", param_hint="--reload")

    def read() -> ServerConfig:
        if config is not None:
            from shardfeed_server.config import load_config

            return load_config(config, _given(of_server) | ({"outputs": []} if no_push else {}))
        return _config_of(shards or [], stream, _given(of_stream), _given(of_server))

    if reload:
        from shardfeed_cli.reload import serve_and_reload

        raise typer.Exit(serve_and_reload(config, read))
    _run(read, log_json=log_json, end_with=end_with, remove_folder=remove_folder)


def _given(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that were passed."""
    return {key: value for key, value in options.items() if value is not None and value is not False and value != []}


def _check_usage(shards: list[str], config: Path | None, of_stream: dict[str, Any]) -> None:
    if config is None and not shards:
        raise typer.BadParameter("give SHARDS and --fields, or --config FILE", param_hint="SHARDS")
    if config is None and "fields" not in of_stream:
        raise typer.BadParameter("give it with SHARDS, for example --fields 'jpg;png cls'", param_hint="--fields")
    if config is None:
        return
    if shards:
        raise typer.BadParameter("give either SHARDS or --config, not both", param_hint="SHARDS")
    if of_stream:
        flag = f"--{next(iter(of_stream)).replace('_', '-')}"
        raise typer.BadParameter("it belongs to SHARDS; with --config write it under [streams.NAME]", param_hint=flag)


def _config_of(shards: list[str], name: str, of_stream: dict[str, Any], of_server: dict[str, Any]) -> ServerConfig:
    from shardfeed_server.config import ServerConfig, stream_from_options
    from shardfeed_server.output_config import read_outputs
    from shardfeed_server.tables import Place

    transforms = of_stream.pop("transform_op", [])
    stream = stream_from_options(shards, transforms=transforms, **of_stream)
    if "bind" in of_server:
        of_server["bind"] = tuple(of_server["bind"])
    if "outputs" in of_server:
        of_server["outputs"] = read_outputs(of_server["outputs"], Place("--push"))
    return ServerConfig(streams={name: stream}, **of_server)


def _run(read: Callable[[], ServerConfig], *, log_json: bool, **until: Any) -> None:
    from shardfeed_cli.logs import show_logs

    show_logs(as_json=log_json)
    if log_json:
        _run_logging(read, until)
    else:
        _run_printing(read, until)


def _run_printing(read: Callable[[], ServerConfig], until: Mapping[str, Any]) -> None:
    """Say on stdout, for a person, what is served."""
    from shardfeed_cli.progress import Meter
    from shardfeed_server.serve import Observer
    from shardfeed_server.serve import serve as run_server

    config = read()
    with Meter("shards") as meter:
        observer = Observer(
            indexing=lambda stream, done, total: meter.show(f"indexing stream {stream}", done, total),
            ready=lambda serving: _announce(serving, config, meter),
            draining=_say_draining,
        )
        run_server(config, observer, reread=read, **until)


def _run_logging(read: Callable[[], ServerConfig], until: Mapping[str, Any]) -> None:
    """Say everything as events in the log, the error that ends the server too."""
    from shardfeed_cli.progress import Pace
    from shardfeed_server.events import logger
    from shardfeed_server.serve import Observer
    from shardfeed_server.serve import serve as run_server

    log, pace = logger("shardfeed.server"), Pace()

    def indexing(stream: str, done: int, total: int) -> None:
        if pace.due():
            log.info("indexing", stream=stream, shards=done, of=total)

    def ready(serving: Serving) -> None:
        from webdataset.images import decodes_parts

        streams = {stream.name: {"samples": stream.samples, "shards": stream.shards} for stream in serving.streams}
        log.info(
            "serving",
            server=serving.name,
            workers=serving.workers,
            endpoints=list(serving.endpoints),
            http=serving.http,
            jpegcrop=decodes_parts(),
            streams=streams,
        )

    try:
        observer = Observer(indexing=indexing, ready=ready, draining=lambda: log.info("draining"))
        run_server(read(), observer, reread=read, log_json=True, **until)
    except ShardfeedError as error:
        log.error(str(error))
        raise typer.Exit(1) from None


def _announce(serving: Serving, config: ServerConfig, meter: Meter) -> None:
    from rich.console import Console

    from shardfeed_cli.announcement import announce

    meter.close()
    given = {name: len(stream.shard_paths()) for name, stream in config.streams.items()}
    # Colours on a terminal only; lines are never wrapped, and nothing in them is markup.
    console = Console(soft_wrap=True, markup=False, emoji=False)
    for line in announce(serving, given):
        console.print(line, highlight=len(line) < _LONG_LINE)


def _say_draining() -> None:
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        print("draining: requests under way are answered, then the server ends", flush=True)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
