"""``python -m coldpress.serve CHECKPOINT``: over HTTP, or on AWS Lambda when Lambda started us."""

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from coldpress.errors import ColdpressError, UsageError
from coldpress.serve.api.listen import listen
from coldpress.serve.engine import Engine
from coldpress.serve.load import loader
from coldpress.serve.load.place import locate
from coldpress.serve.options import EngineOptions
from coldpress.serve.speculation import SPECULATE
from coldpress.serve.trace import Trace

_KEYS = "COLDPRESS_API_KEYS"
_M_ARENA_MAX = -8
"""Of <malloc.h>."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code, after two lines on stderr if it is not 0."""
    _share_one_heap()
    try:
        argv = sys.argv[1:] if argv is None else argv
        arguments = _parser().parse_args(argv)
        options = EngineOptions(
            context=arguments.context,
            parallel=arguments.parallel,
            threads=arguments.threads,
            queue=arguments.queue,
            speculate=arguments.speculate,
            draft=arguments.draft,
            load=arguments.load,
            verify=arguments.verify,
        )
        # Lambda sets this to the address of its Runtime API.
        if address := os.environ.get("AWS_LAMBDA_RUNTIME_API"):
            _serve_lambda(arguments.checkpoint, options, address)
        elif arguments.emulate_lambda:
            _emulate_lambda(arguments, argv)
        else:
            _serve_http(arguments, options)
    except ColdpressError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f" hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _share_one_heap() -> None:
    """Let all threads allocate from one heap.

    glibc gives each thread its own, and what one frees the others cannot use: with the front's threads
    memory grew by 0.7 % a minute. None waits for another long: the engine allocates little.
    """
    with suppress(AttributeError):  # musl has but one
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coldpress serve", description="Serve a checkpoint: OpenAI's API on the CPU."
    )
    add = parser.add_argument
    add("checkpoint", help="folder, GGUF file, or address: http(s)://, s3://, gs://")
    outside = "0.0.0.0" if "PORT" in os.environ else "127.0.0.1"  # noqa: S104  # a platform's $PORT
    add("--host", default=outside, help="default: 127.0.0.1, or 0.0.0.0 where $PORT is set")
    add("--port", default=os.environ.get("PORT", "8080"), help="default: $PORT, else 8080; 0: any")
    preset = EngineOptions()
    add("--context", type=int, default=preset.context, help="tokens of prompt and answer together")
    add("--threads", type=int, default=preset.threads, help="default: the CPUs allowed")
    add("--parallel", type=int, default=preset.parallel, help="sequences decoded together")
    add("--queue", type=int, default=preset.queue, help="requests that may wait")
    add("--speculate", default=preset.speculate, help=f"guess ahead: {', '.join(SPECULATE)}")
    add("--draft", type=Path, help="GGUF file of a smaller model that guesses")
    add("--load", default=preset.load, help=f"of a local file: {', '.join(loader.TIERS)}")
    add("--verify", action="store_true", help="prove every chunk of a local checkpoint first")
    add("--api-keys", type=Path, help=f"file with an API key per line; default: ${_KEYS}")
    add("--cors", action="append", default=[], metavar="ORIGIN", help="whose pages may call")
    add("--answer-seconds", type=float, default=600, help="an answer is cut after so long")
    add("--client-seconds", type=int, default=30, help="a client that stands still is let go")
    # Cloud Run kills 10 seconds after SIGTERM, Kubernetes 30.
    drain_s = 8 if "K_SERVICE" in os.environ else 25
    add("--drain-seconds", type=int, default=drain_s, help="for answers to end after SIGTERM")
    add("--quiet", action="store_true", help="no line per request on stdout")
    add(
        "--emulate-lambda",
        action="store_true",
        help="as a function URL of a Lambda on this machine",
    )
    add("--lambda-timeout", type=float, default=60, help="seconds that its invocations may take")
    add(
        "--lambda-fault",
        default="none",
        help="hang-up:N or kill:N at the Nth chunk, deadline:S, freeze:S between invocations",
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"{text!r} is not a port", "--port and $PORT take 0 to 65535")
    return int(text)


def _keys(file: Path | None) -> tuple[str, ...]:
    """API keys, one per line of a file, or separated by commas in the environment.

    Not on the command line, which every user of a machine can read.
    """
    try:
        text = os.environ.get(_KEYS, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} cannot be read: {error}", "give a text file of API keys"
        ) from error
    keys = tuple(key.strip() for key in text.replace(",", "\n").splitlines() if key.strip())
    if file is not None and not keys:
        raise UsageError(f"{file} has no key", "write one per line")
    return keys


def _serve_http(arguments: argparse.Namespace, options: EngineOptions) -> None:
    trace = Trace()
    keys, port = _keys(arguments.api_keys), _port(arguments.port)
    place = locate(arguments.checkpoint)
    bound = listen(arguments.host, port)
    engine = Engine(place, options, trace)
    engine.start()
    try:
        # These imports take a tenth of a second, in which the model is loading already.
        from coldpress.serve.api import http

        front = http.HttpOptions(
            keys=keys,
            origins=tuple(arguments.cors),
            answer_s=arguments.answer_seconds,
            drain_s=arguments.drain_seconds,
            client_s=arguments.client_seconds,
            log_requests=not arguments.quiet,
        )
        http.serve(engine, bound, trace, front)
    finally:
        bound.close()
        engine.close()
    if engine.failure is not None:
        raise engine.failure


def _serve_lambda(checkpoint: str, options: EngineOptions, address: str) -> None:
    from coldpress.serve.aws import front
    from coldpress.serve.aws.runtime_api import FunctionError, RuntimeApi

    trace = Trace()
    api = RuntimeApi(address)
    try:
        # A Lambda environment answers one request at a time.
        engine = Engine(locate(checkpoint), replace(options, parallel=1), trace)
    except ColdpressError as error:
        api.fail_init(FunctionError("Coldpress.init", error.message))
        raise
    engine.start()
    try:
        front.run(engine, api)
    finally:
        engine.close()


def _emulate_lambda(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    from coldpress.serve.aws import function_url
    from coldpress.serve.aws.emulator import Fault, Lambda

    trace = Trace()
    locate(arguments.checkpoint)  # what is wrong with it is said here, not at the first request
    # The runtime gets the same arguments: told of a Runtime API, it does not look at ours.
    fault = Fault.parse(arguments.lambda_fault)
    function = Lambda(argv, arguments.lambda_timeout, fault)
    with listen(arguments.host, _port(arguments.port)) as bound:
        function_url.serve(function, bound, trace)


if __name__ == "__main__":
    sys.exit(main())
