"""``python -m coldpress.serve CHECKPOINT``: over HTTP, or on AWS Lambda when Lambda started us."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from coldpress.errors import ColdpressError, UsageError
from coldpress.serve import loader
from coldpress.serve.engine import Engine, EngineOptions
from coldpress.serve.listen import listen
from coldpress.serve.place import locate
from coldpress.serve.trace import Trace


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code, after two lines on stderr if it is not 0."""
    try:
        arguments = _parser().parse_args(argv)
        options = EngineOptions(
            context=arguments.context,
            parallel=arguments.parallel,
            threads=arguments.threads,
            queue=arguments.queue,
            load=arguments.load,
            verify=arguments.verify,
        )
        # Lambda sets this to the address of its Runtime API.
        if address := os.environ.get("AWS_LAMBDA_RUNTIME_API"):
            _serve_lambda(arguments.checkpoint, options, address)
        else:
            _serve_http(arguments.checkpoint, options, arguments.host, _port(arguments.port))
    except ColdpressError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f" hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


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
    add("--load", default=preset.load, help=f"of a local file: {', '.join(loader.TIERS)}")
    add("--verify", action="store_true", help="prove every chunk of a local checkpoint first")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"{text!r} is not a port", "--port and $PORT take 0 to 65535")
    return int(text)


def _serve_http(checkpoint: str, options: EngineOptions, host: str, port: int) -> None:
    trace = Trace()
    place = locate(checkpoint)
    bound = listen(host, port)
    engine = Engine(place, options, trace)
    engine.start()
    try:
        # These imports take a tenth of a second, in which the model is loading already.
        from coldpress.serve import http

        http.serve(engine, bound, trace)
    finally:
        bound.close()
        engine.close()
    if engine.failure is not None:
        raise engine.failure


def _serve_lambda(checkpoint: str, options: EngineOptions, address: str) -> None:
    from coldpress.serve import aws_lambda
    from coldpress.serve.runtime_api import FunctionError, RuntimeApi

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
        aws_lambda.run(engine, api)
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
