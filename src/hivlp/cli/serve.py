"""The verb that serves."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from hivlp.cli.output import UsageError
from hivlp.errors import HivlpError


def run_serve(arguments: argparse.Namespace) -> int:
    """``hivlp serve``: until interrupted."""
    from hivlp.index import Index
    from hivlp.serve.listening import check_exposure, listen, urls_of
    from hivlp.serve.run import names_of, serve
    from hivlp.serve.settings import MIB, Settings

    token = _token(arguments)
    settings = Settings(
        token=token,
        roots=tuple(arguments.root),
        watch=tuple(arguments.watch),
        hosts=tuple(host.lower() for host in arguments.allow_host),
        origins=tuple(arguments.allow_origin),
        allow_urls=arguments.allow_urls,
        read_only=arguments.read_only,
        upload_bytes=arguments.upload_mb * MIB,
        threads=arguments.threads or 0,
        queue=arguments.queue,
        seconds=arguments.seconds,
    )
    for folder in (*settings.roots, *settings.watch):
        if not folder.is_dir():
            raise HivlpError(f"{folder} is no folder")
    if not 0 <= arguments.port < 1 << 16:
        raise UsageError("serve", f"a port is 0 to 65535, not {arguments.port}")
    check_exposure(arguments.host, settings, insecure=arguments.insecure)
    named = names_of(arguments.indexes)
    indexes = {name: Index.open(path, read_only=settings.read_only) for name, path in named.items()}
    sockets = listen(arguments.host, arguments.port)
    urls = urls_of(sockets)
    if arguments.json:
        told = {"url": urls[0], "indexes": {name: str(index.path) for name, index in indexes.items()}}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    else:
        once = "" if token is None else "; a browser opens it with ?token=TOKEN once"
        sys.stderr.write(f"hivlp: serving {', '.join(indexes)} at {urls[0]}{once}; Ctrl-C ends it\n")
    serve(indexes, settings, sockets, insecure=arguments.insecure)
    return 0


def _token(arguments: argparse.Namespace) -> str | None:
    """The token, from a file or the environment, where no other process's list shows it."""
    if arguments.token_file is None:
        return os.environ.get("HIVLP_TOKEN") or None
    try:
        token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HivlpError(f"{arguments.token_file} cannot be read: {error}") from error
    if not token:
        raise HivlpError(f"{arguments.token_file} holds no token")
    return token
